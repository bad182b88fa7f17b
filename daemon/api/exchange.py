"""One request that passed its dialect's checks, and the model that is to answer it.

Everything that can be refused without the weights is refused before. From here on one generator does
the work, and closing it (a client that left) takes all of it back.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace

import msgspec
from msgspec import UNSET, UnsetType

from backends.types import Chat, CountTokens, Delta, Progress
from daemon.api.growth import grown, may_not_fit
from daemon.api.lookup import KnownModel
from daemon.api.options import ResolvedOptions
from daemon.api.services import Services
from daemon.errors import Cancelled, LoadFailed
from daemon.residency.lease import Lease

# Seconds; None is forever; UNSET leaves a model with what it was last given.
KeepAlive = float | None | UnsetType
_MOST_HEADER_CHARACTERS = 1000


@dataclass(frozen=True)
class Exchange:
    """For which model, with which options, and for whom; requests of one `client` share its turns.

    `on_ready` is called when the model is there. A prompt that is too long for the default context gets
    a longer one, where neither the request nor the model says one.
    """

    services: Services
    client: str
    model: KnownModel
    options: ResolvedOptions
    keep_alive: KeepAlive = UNSET
    on_ready: Callable[[], None] = lambda: None

    async def acquire(self, *, wants_row: bool) -> Lease:
        """Waits for the model; `wants_row` is False for what does not generate."""
        lease = await self.services.residency.acquire(
            self.model.stored,
            context_length=self.options.wanted_context_length,
            keep_alive_seconds=self.keep_alive,
            client=self.client,
            wants_row=wants_row,
        )
        self.on_ready()
        return lease

    async def events(self, chat: Chat) -> AsyncGenerator[Delta | Progress, None]:
        """The answer as it comes; the last delta has a `finish`. Raises DaemonError."""
        with self.services.metrics.answer(self.model.stored.name.short) as counted:
            lease, chat = await self._seated(chat)
            async with lease, lease.chat(chat) as events:
                async for event in events:
                    counted.last = event
                    if not counted.has_begun:
                        counted.begin(event)
                    yield event

    async def _seated(self, chat: Chat) -> tuple[Lease, Chat]:
        options = await self._grown(chat)
        if options is not self.options:
            roomy = replace(self, options=options)
            # Where memory does not allow it, the prompt is cut or refused as it always was.
            with contextlib.suppress(LoadFailed):
                lease = await roomy.acquire(wants_row=True)
                return lease, msgspec.structs.replace(chat, limits=options.limits)
        return await self.acquire(wants_row=True), chat

    async def _grown(self, chat: Chat) -> ResolvedOptions:
        is_said = self.options.wanted_context_length is not None
        if is_said or not self.services.config.context_growth or not may_not_fit(chat):
            return self.options
        count = CountTokens(request_id=chat.request_id, chat=chat)
        async with await self.acquire(wants_row=False) as lease:
            prompt_ids = await lease.count(count)
        return grown(self.options, chat, prompt_ids, self.model.trained_context_length)

    async def deltas(self, chat: Chat) -> AsyncGenerator[Delta, None]:
        """`events` without the progress before them."""
        async with aclosing(self.events(chat)) as events, aclosing(deltas_of(events)) as deltas:
            async for delta in deltas:
                yield delta


async def deltas_of(events: AsyncIterator[Delta | Progress]) -> AsyncGenerator[Delta, None]:
    """Raises Cancelled where the answer was cut off, behind what there is of it."""
    async for event in events:
        if isinstance(event, Delta):
            yield event
            if event.finish == "cancelled":
                raise Cancelled


def warning_headers(ignored: Iterable[str]) -> dict[str, str]:
    """Names what was accepted and has no meaning here, cut to what a header may hold."""
    names = [name for name in ignored if name.isascii() and name.isprintable()]
    if not names:
        return {}
    return {"Hearth-Warnings": f"ignored options: {', '.join(names)[:_MOST_HEADER_CHARACTERS]}"}
