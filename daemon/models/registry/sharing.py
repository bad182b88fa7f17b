"""One piece of work that many wait for: each sees every status, the last to leave stops it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable

from daemon.errors import Busy, DaemonError, Internal
from daemon.models.create_request import CreateStatus

# How often a progress line is sent, at most.
SHOW_SECONDS = 0.06


class Progress:
    """The statuses so far, each line at its newest. Whoever comes late reads them from the start."""

    def __init__(self) -> None:
        self.lines: list[CreateStatus] = []
        self._by_digest: dict[str, int] = {}

    def say(self, status: str, *, total: int = 0, completed: int = 0) -> None:
        """A new line, or news of the last one when it says the same."""
        line = CreateStatus(status=status, total=total, completed=completed)
        if self.lines and self.lines[-1].status == status:
            self.lines[-1] = line
        else:
            self.lines.append(line)

    def show(self, verb: str, digest: str, total: int, completed: int) -> None:
        """How far a blob is; never runs backwards."""
        index = self._by_digest.setdefault(digest, len(self.lines))
        status = f"{verb} {digest.removeprefix('sha256:')[:12]}"
        line = CreateStatus(status=status, digest=digest, total=total, completed=completed)
        if index == len(self.lines):
            self.lines.append(line)
        elif completed > self.lines[index].completed:
            self.lines[index] = line


class SharedWork:
    """Begins when it is made. `work` reports to the Progress that it is given."""

    def __init__(
        self, work: Callable[[Progress], Awaitable[None]], forget: Callable[[SharedWork], None]
    ) -> None:
        self._progress = Progress()
        self._forget = forget
        self._waiters = 0
        self._task = asyncio.ensure_future(work(self._progress))
        self._task.add_done_callback(lambda _: forget(self))

    async def follow(self) -> AsyncGenerator[CreateStatus]:
        """Every status until the end. Raises what the work failed with; close it to leave early."""
        self._waiters += 1
        seen: list[CreateStatus] = []
        try:
            is_over = False
            while not is_over:
                is_over = self._task.done()
                for line in self._news(seen):
                    yield line
                await asyncio.wait({self._task}, timeout=SHOW_SECONDS)
            self._result()
        finally:
            self._waiters -= 1
            if not self._waiters and not self._task.done():
                await asyncio.shield(self.stop())

    def _news(self, seen: list[CreateStatus]) -> list[CreateStatus]:
        """Lines that changed since `seen`, which is brought up to date."""
        news: list[CreateStatus] = []
        for index, line in enumerate(self._progress.lines):
            if index == len(seen):
                seen.append(line)
            elif line is seen[index]:
                continue
            seen[index] = line
            news.append(line)
        return news

    def _result(self) -> None:
        if self._task.cancelled():
            raise Busy("the daemon is stopping")
        error = self._task.exception()
        if isinstance(error, DaemonError):
            raise type(error)(error.message)  # an error of its own for each waiter
        if error is not None:
            raise Internal(f"unexpected: {error}") from error

    async def stop(self) -> None:
        """Forgotten at once, so that whoever comes now begins anew and does not share the end."""
        self._forget(self)
        self._task.cancel()
        await asyncio.wait({self._task})


class SharedWorks:
    """All work of one kind that is under way, by what it is about: callers of one key share one."""

    def __init__(self) -> None:
        self._running: dict[Hashable, SharedWork] = {}

    async def follow(
        self, key: Hashable, work: Callable[[Progress], Awaitable[None]]
    ) -> AsyncGenerator[CreateStatus]:
        """As `SharedWork.follow`; `work` begins unless the same is already under way."""
        if key not in self._running:
            self._running[key] = SharedWork(work, lambda over: self._forget(key, over))
        async with contextlib.aclosing(self._running[key].follow()) as lines:
            async for line in lines:
                yield line

    def _forget(self, key: Hashable, over: SharedWork) -> None:
        if self._running.get(key) is over:
            del self._running[key]

    async def close(self) -> None:
        for work in list(self._running.values()):
            await work.stop()
