"""`/v1/models`: the shelf as this dialect shows it, contract.md §11.5. Ids may have slashes."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Controller, Response, get
from litestar.params import FromPath

from daemon.api.framing import PROGRESS_JSON, error_handlers, json_response
from daemon.api.lookup import resolve_stored
from daemon.api.openai.errors import EVENTS
from daemon.api.services import Rooms
from daemon.models.describe import list_models
from daemon.models.name import parse_name


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """`created` is when the model was last changed, seconds of Unix time."""

    id: str
    object: str = "model"
    created: int
    owned_by: str


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    object: str = "list"
    data: tuple[ModelCard, ...]


class ModelController(Controller):
    tags = ["openai"]
    exception_handlers: Any = error_handlers(EVENTS)

    @get("/v1/models", media_type=PROGRESS_JSON)
    async def list_all(self, services: Rooms) -> Response[bytes]:
        await services.foreign.refresh()
        found = await list_models(services.store, services.conversions, services.foreign.models())
        cards = tuple(
            ModelCard(
                id=entry.name,
                created=int(entry.modified_at.timestamp()),
                owned_by=parse_name(entry.name).namespace,
            )
            for entry in found
        )
        return json_response(ModelList(data=cards))

    @get("/v1/models/{asked:path}")
    async def retrieve(self, asked: FromPath[str], services: Rooms) -> Response[bytes]:
        asked = str(asked).removeprefix("/")
        name = parse_name(asked)
        await services.foreign.look_for(name)
        model = resolve_stored(services, name, name.short)
        card = ModelCard(
            id=asked, created=int(model.modified_seconds), owned_by=model.name.namespace
        )
        return json_response(card)
