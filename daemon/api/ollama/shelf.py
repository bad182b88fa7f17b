"""What lies on the shelf and what is in memory: tags, show, ps, copy, delete, import, create.

What changes the shelf answers only clients on the daemon's own machine, until there are keys.
"""

from __future__ import annotations

import datetime

import msgspec
from litestar import Controller, MediaType, Response, delete, get, post, route
from litestar.params import JSONBody

from daemon.api.framing import JSON, json_response
from daemon.api.ollama.lookup import CLOUD_DETAILS_DISABLED
from daemon.api.ollama.shelf_wire import CopyRequest, NamedRequest, ShowRequest
from daemon.api.request import only_this_machine
from daemon.api.services import Rooms, Services
from daemon.api.system import READ
from daemon.errors import Forbidden, Invalid, NotFound
from daemon.models.describe import Details, ModelEntry, ShowAnswer, details_of, list_models, show
from daemon.models.name import InvalidName, ModelName, is_cloud_reference, parse_name
from daemon.residency.loaded import LoadedModel


class TagsAnswer(msgspec.Struct, frozen=True):
    models: list[ModelEntry]


class RunningModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model in memory. `size` and `size_vram` are bytes; equal means all on the device."""

    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: datetime.datetime
    size_vram: int
    context_length: int


class RunningAnswer(msgspec.Struct, frozen=True):
    models: list[RunningModel]


def _empty() -> Response[bytes]:
    return Response(b"", media_type=MediaType.TEXT)


def _running(loaded: LoadedModel, services: Services) -> RunningModel:
    model = loaded.model
    return RunningModel(
        name=loaded.name,
        model=loaded.name,
        size=loaded.size,
        digest=model.digest,
        details=details_of(model, services.conversions.known_inspection(model.model_digest)),
        expires_at=loaded.expires_at,
        size_vram=loaded.size_vram,
        context_length=loaded.context_length,
    )


def _quoted_name(text: str, what: str) -> ModelName:
    """Raises Invalid with the texts of copy and delete."""
    try:
        return parse_name(text)
    except InvalidName:
        raise Invalid(f'{what} "{text}" is invalid') from None


class ShelfController(Controller):
    tags = ["ollama"]

    @route("/api/tags", http_method=READ, media_type=JSON)
    async def list_all(self, services: Rooms) -> Response[bytes]:
        return json_response(TagsAnswer(await list_models(services.store, services.conversions)))

    @get("/api/ps")
    async def running(self, services: Rooms) -> Response[bytes]:
        models = [_running(loaded, services) for loaded in services.residency.loaded()]
        return json_response(RunningAnswer(models))

    @post("/api/show", status_code=200)
    async def show_model(self, data: JSONBody[ShowRequest], services: Rooms) -> Response[bytes]:
        answer = await _show(data, services)
        return json_response(answer)

    @post("/api/copy", status_code=200, guards=[only_this_machine])
    async def copy(self, data: JSONBody[CopyRequest], services: Rooms) -> Response[bytes]:
        source = _quoted_name(data.source, "source")
        destination = _quoted_name(data.destination, "destination")
        try:
            await services.store.copy(source, destination)
        except NotFound:
            raise NotFound(f'model "{data.source}" not found') from None
        return _empty()

    @delete("/api/delete", status_code=200, guards=[only_this_machine])
    async def remove(self, data: JSONBody[NamedRequest], services: Rooms) -> Response[bytes]:
        if not data.asked.strip():
            raise Invalid("model is required")
        name = _quoted_name(data.asked, "name")
        try:
            await services.store.delete(name)
        except NotFound:
            raise NotFound(f"model '{data.asked}' not found") from None
        return _empty()


async def _show(data: ShowRequest, services: Services) -> ShowAnswer:
    if not data.asked.strip():
        raise Invalid("model is required")
    if is_cloud_reference(data.asked):
        raise Forbidden(CLOUD_DETAILS_DISABLED)
    model = services.store.resolve(parse_name(data.asked))
    return await show(
        model,
        services.conversions,
        verbose=data.verbose,
        system=data.system,
        options=data.options,
    )
