"""What lies on the shelf and what is in memory: tags, show, ps, copy, delete, import, create.

What changes the shelf answers this machine, and elsewhere keys of the scope `manage`.
"""

from __future__ import annotations

import contextlib
import datetime

import msgspec
from litestar import Controller, MediaType, Response, delete, get, post, route
from litestar.params import JSONBody

from daemon.api.framing import JSON, json_response
from daemon.api.lookup import CLOUD_DETAILS_DISABLED, resolve_stored
from daemon.api.ollama.shelf_wire import CopyRequest, NamedRequest, ShowRequest
from daemon.api.request import ApiRequest, only_managers
from daemon.api.services import Rooms, Services
from daemon.api.system import READ
from daemon.errors import Forbidden, Invalid, NotFound
from daemon.models.create_request import CreateRequest
from daemon.models.describe import Details, ModelEntry, ShowAnswer, details_of, list_models, show
from daemon.models.name import InvalidName, ModelName, is_cloud_reference, parse_name
from daemon.residency.loaded import LoadedModel, Serving

# This client shows `general.basename` where the others show the name.
_READS_THE_BASE_NAME = "GitHubCopilotChat/"


class TagsAnswer(msgspec.Struct, frozen=True):
    models: list[ModelEntry]


class RunningModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model in memory. `size` and `size_vram` are bytes; equal means all on the device.

    `runs_on` is Hearth's own: the sentence that says which backend it is and why.
    So is `serving`: "idle", "busy", or "stalled" when nothing has moved for long.
    """

    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: datetime.datetime
    size_vram: int
    context_length: int
    runs_on: str
    serving: Serving


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
        runs_on=loaded.reason,
        serving=loaded.serving,
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
        await services.foreign.refresh()
        models = await list_models(
            services.store,
            services.conversions,
            services.creator.target_for,
            services.foreign.models(),
        )
        return json_response(TagsAnswer(models))

    @get("/api/ps")
    async def running(self, services: Rooms) -> Response[bytes]:
        models = [_running(loaded, services) for loaded in services.residency.loaded()]
        return json_response(RunningAnswer(models))

    @post("/api/show", status_code=200)
    async def show_model(
        self, data: JSONBody[ShowRequest], request: ApiRequest, services: Rooms
    ) -> Response[bytes]:
        answer = await _show(data, services)
        if request.headers.get("user-agent", "").startswith(_READS_THE_BASE_NAME):
            answer.model_info["general.basename"] = data.asked
        return json_response(answer)

    @post("/api/copy", status_code=200, guards=[only_managers])
    async def copy(self, data: JSONBody[CopyRequest], services: Rooms) -> Response[bytes]:
        source = _quoted_name(data.source, "source")
        destination = _quoted_name(data.destination, "destination")
        await services.foreign.look_for(source)
        try:
            if services.store.find(source) is None and services.foreign.find(source) is not None:
                await _take_over(services, source, destination)
            else:
                await services.store.copy(source, destination)
        except NotFound:
            raise NotFound(f'model "{data.source}" not found') from None
        return _empty()

    @delete("/api/delete", status_code=200, guards=[only_managers])
    async def remove(self, data: JSONBody[NamedRequest], services: Rooms) -> Response[bytes]:
        if not data.asked.strip():
            raise Invalid("model is required")
        name = _quoted_name(data.asked, "name")
        await services.foreign.look_for(name)
        try:
            await _delete(services, name)
        except NotFound:
            raise NotFound(f"model '{data.asked}' not found") from None
        return _empty()


async def _take_over(services: Services, source: ModelName, destination: ModelName) -> None:
    """A copy of another program's model is a model of ours, over the same content."""
    request = CreateRequest(model=destination.full, source=source.full)
    async with contextlib.aclosing(services.creator.create(request)) as steps:
        async for _ in steps:
            pass


async def _delete(services: Services, name: ModelName) -> None:
    """The artifacts of content that this removed are of no more use either."""
    store = services.store
    if store.find(name) is None and services.foreign.find(name) is not None:
        await services.foreign.delete(name)
        return
    weights = [stored.manifest.digests for stored in store.manifests() if stored.name.same_as(name)]
    await store.delete(name)
    gone = [digest for digests in weights for digest in digests if not store.blobs.has(digest)]
    await services.collector.collect(gone)


async def _show(data: ShowRequest, services: Services) -> ShowAnswer:
    if not data.asked.strip():
        raise Invalid("model is required")
    if is_cloud_reference(data.asked):
        raise Forbidden(CLOUD_DETAILS_DISABLED)
    name = parse_name(data.asked)
    await services.foreign.look_for(name)
    model = await services.foreign.identified(resolve_stored(services, name, name.short))
    return await show(
        model,
        services.conversions,
        services.creator.target_for,
        verbose=data.verbose,
        system=data.system,
        options=data.options,
    )
