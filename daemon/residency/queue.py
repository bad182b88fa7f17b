"""The requests that wait for a model or for a free row: bounded, fair, visible.

Fair: the first request of every client comes before the second of any; within that, first come,
first served. Whoever has waited `PATIENCE_SECONDS` is ahead of all that came later, so that nobody
starves. Owned by the event loop; only `Residency` changes it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping

import msgspec

from daemon.errors import Busy
from daemon.residency.lease import Lease, Wish
from daemon.residency.placement import Placement
from daemon.residency.plan import WaitingView

# Two spaces, as clients know it.
FULL = "server busy, please try again.  maximum pending requests exceeded"
PATIENCE_SECONDS = 60.0


class QueuedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One waiting request, for people. `position` counts from 1; `waits_for` is one word."""

    name: str
    client: str
    position: int
    age_seconds: float
    waits_for: str


class Waiter:
    """A request in the queue. `granted` becomes its lease.

    `placement` and `view` are None until its model is converted and the plan may look at it.
    """

    def __init__(self, ticket: int, wish: Wish, now: float) -> None:
        self.ticket = ticket
        self.wish = wish
        self.since = now
        self.placement: Placement | None = None
        self.view: WaitingView | None = None
        self.granted: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()


class WaitQueue:
    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`limit` counts waiting requests only, not those being served."""
        self._limit = limit
        self._clock = clock
        self._tickets = itertools.count(1)
        self._waiters: dict[int, Waiter] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    def __repr__(self) -> str:
        return f"<WaitQueue {len(self)} of {self._limit}>"

    def join(self, wish: Wish) -> Waiter:
        """Raises Busy when the queue is full."""
        if len(self._waiters) >= self._limit:
            raise Busy(FULL)
        waiter = Waiter(next(self._tickets), wish, self._clock())
        self._waiters[waiter.ticket] = waiter
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Served or given up; may be called again."""
        self._waiters.pop(waiter.ticket, None)

    def __getitem__(self, ticket: int) -> Waiter:
        return self._waiters[ticket]

    @property
    def is_contended(self) -> bool:
        """Whether anybody waits for memory or a row, and so must not be passed."""
        return any(waiter.view is not None for waiter in self._waiters.values())

    def in_turn(self, running: Mapping[str, int]) -> list[Waiter]:
        """All waiters, next one first. `running` counts the requests being served, by client."""
        late = self._clock() - PATIENCE_SECONDS
        ahead: Counter[str] = Counter(running)
        turns: list[tuple[int, int, Waiter]] = []
        for waiter in self._waiters.values():  # in the order of arrival
            turns.append(
                (-1 if waiter.since <= late else ahead[waiter.wish.client], waiter.ticket, waiter)
            )
            ahead[waiter.wish.client] += 1
        return [waiter for _, _, waiter in sorted(turns, key=lambda turn: turn[:2])]

    def visible(self, running: Mapping[str, int]) -> list[QueuedRequest]:
        now = self._clock()
        return [
            QueuedRequest(
                name=waiter.wish.name,
                client=waiter.wish.client,
                position=position,
                age_seconds=now - waiter.since,
                waits_for="conversion" if waiter.view is None else "memory or a row",
            )
            for position, waiter in enumerate(self.in_turn(running), 1)
        ]
