"""`/v1/models`: the shelf as this dialect shows it, contract.md §11.5. Ids may have slashes.

Anthropic's clients ask the same paths; the fields that they read stand beside the others.
"""

from __future__ import annotations

import datetime
from typing import Any, Self

import msgspec
from litestar import Controller, Response, get
from litestar.params import FromPath

from daemon.api.framing import PROGRESS_JSON, error_handlers, json_response
from daemon.api.lookup import resolve_stored
from daemon.api.openai.errors import EVENTS
from daemon.api.services import Rooms
from daemon.models.describe import known_capabilities, list_models
from daemon.models.name import parse_name


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """`created` is when the model was last changed, seconds of Unix time; `created_at` says it again.

    `capabilities` is ours: what `/api/tags` says, so that clients know who takes images.
    """

    id: str
    object: str = "model"
    type: str = "model"
    created: int
    created_at: str
    display_name: str
    owned_by: str
    capabilities: tuple[str, ...]

    @classmethod
    def of(
        cls, shown: str, changed_seconds: float, owner: str, capabilities: tuple[str, ...]
    ) -> Self:
        changed = datetime.datetime.fromtimestamp(int(changed_seconds), datetime.UTC)
        return cls(
            id=shown,
            created=int(changed_seconds),
            created_at=changed.strftime("%Y-%m-%dT%H:%M:%SZ"),
            display_name=shown,
            owned_by=owner,
            capabilities=capabilities,
        )


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """All of them: there are no pages."""

    object: str = "list"
    data: tuple[ModelCard, ...]
    has_more: bool = False
    first_id: str | None
    last_id: str | None


class ModelController(Controller):
    tags = ["openai"]
    exception_handlers: Any = error_handlers(EVENTS)

    @get("/v1/models", media_type=PROGRESS_JSON)
    async def list_all(self, services: Rooms) -> Response[bytes]:
        await services.foreign.refresh()
        found = await list_models(
            services.store,
            services.conversions,
            services.creator.target_for,
            services.foreign.models(),
        )
        cards = tuple(
            ModelCard.of(
                entry.name,
                entry.modified_at.timestamp(),
                parse_name(entry.name).namespace,
                entry.capabilities,
            )
            for entry in found
        )
        first, last = (cards[0].id, cards[-1].id) if cards else (None, None)
        return json_response(ModelList(data=cards, first_id=first, last_id=last))

    @get("/v1/models/{asked:path}")
    async def retrieve(self, asked: FromPath[str], services: Rooms) -> Response[bytes]:
        asked = str(asked).removeprefix("/")
        name = parse_name(asked)
        await services.foreign.look_for(name)
        model = resolve_stored(services, name, name.short)
        capabilities = await known_capabilities(
            model, services.conversions, services.creator.target_for
        )
        owner = model.name.namespace
        return json_response(ModelCard.of(asked, model.modified_seconds, owner, capabilities))
