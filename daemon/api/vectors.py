"""Texts to a worker and vectors back, for every dialect that has a route for them."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, cast

from msgspec import UNSET

from backends.types import Embed, Embedded, Usage
from daemon.api.exchange import KeepAlive
from daemon.api.lookup import KnownModel
from daemon.api.services import Services
from daemon.errors import Invalid
from daemon.residency.lease import Lease

# Texts of one question to a worker: its answer must fit a frame whatever the model's width.
TEXTS_PER_QUESTION = 256
_AFTER_TRUNCATION = "input after truncation exceeds maximum context length"


def read_texts(value: Any) -> tuple[str, ...]:
    """One text or several; nothing where nothing is sent. Raises Invalid."""
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        return (value,)
    items = cast("list[Any]", value) if isinstance(value, list) else [None]
    if not all(isinstance(item, str) for item in items):
        raise Invalid("invalid input type")
    return tuple(cast("list[str]", items))


@dataclass(frozen=True)
class Vectors:
    """One request for vectors that passed its checks. `limit` None: as much as the model takes."""

    services: Services
    client: str
    model: KnownModel
    texts: tuple[str, ...]
    limit: int | None = None
    keep_alive: KeepAlive = UNSET
    truncate: bool = True
    dimensions: int = 0

    async def lease(self) -> Lease:
        return await self.services.residency.acquire(
            self.model.stored,
            context_length=self.limit if self.limit and self.limit > 0 else None,
            keep_alive_seconds=self.keep_alive,
            client=self.client,
            wants_row=False,
        )

    async def of(self, lease: Lease) -> AsyncGenerator[Embedded, None]:
        """Raises DaemonError; one text that fails fails them all."""
        if self.texts and self.limit is not None and self.limit < 1:
            raise Invalid(_AFTER_TRUNCATION)
        for begin in range(0, len(self.texts), TEXTS_PER_QUESTION):
            part = await lease.embed(
                Embed(
                    request_id=uuid.uuid4().hex,
                    texts=self.texts[begin : begin + TEXTS_PER_QUESTION],
                    truncate=self.truncate,
                    dimensions=max(0, self.dimensions),
                    context_length=self.limit or 0,
                )
            )
            name = self.model.stored.name.short
            self.services.metrics.count_ids(name, Usage(prompt_tokens=part.prompt_tokens))
            yield part
