"""A `Lease`: the right to use a loaded model, and the only way to talk to its worker.

Releasing it, for whatever reason and as often as you like, takes back what it still has running. A
`Resident` is one worker with the names that hold it; only `Residency` and its leases change it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import msgspec

from backends.types import (
    Chat,
    Counted,
    CountTokens,
    Delta,
    Embed,
    Embedded,
    Loaded,
    Progress,
    Rank,
    Ranked,
    Render,
    Rendered,
)
from daemon.errors import Internal, NotYet, WorkerDied
from daemon.models.resolved import ResolvedModel
from daemon.residency.answer import AnswerStream
from daemon.residency.placement import Placement
from daemon.residency.plan import LoadedView, State, WorkerKey
from daemon.residency.settings import FOREVER
from daemon.residency.worker_process import DIED, Question, SingleT, WorkerProcess

# Beyond that the loop cannot count.
_LONGEST_TIMER_SECONDS = 10 * 365 * 86400.0


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What one caller of `acquire` wants. `keep_alive_seconds` None: not given."""

    model: ResolvedModel
    context_length: int = 0
    keep_alive_seconds: float | None = None
    client: str = ""
    wants_row: bool = True

    @property
    def name(self) -> str:
        return self.model.name.short


class NameHold:
    """One name's hold on a worker. It lasts while it has users and `keep_alive_seconds` after."""

    def __init__(self, model: ResolvedModel, keep_alive_seconds: float) -> None:
        self.name = model.name.short
        self.model = model
        self.keep_alive_seconds = keep_alive_seconds
        self.users = 0
        self.expires_at = FOREVER
        self.timer: asyncio.TimerHandle | None = None

    def start_timer(self, expire: Callable[[], None]) -> None:
        """`expire` is called once nobody has used it for as long as it lasts; maybe at once."""
        self.stop_timer()
        seconds = self.keep_alive_seconds
        self.expires_at = time.monotonic() + seconds
        if seconds <= 0:
            expire()
        elif seconds < _LONGEST_TIMER_SECONDS:
            self.timer = asyncio.get_running_loop().call_later(seconds, expire)

    def stop_timer(self) -> None:
        """Somebody uses it again, or it is gone."""
        self.expires_at = FOREVER
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Resident:
    """One worker, from the decision to load it until its process is gone."""

    def __init__(
        self, key: WorkerKey, placement: Placement, row_length: int, loaded_as: NameHold
    ) -> None:
        self.key = key
        self.placement = placement
        self.context_length = row_length
        self.state: State = "loading"
        self.worker: WorkerProcess | None = None
        self.loaded: Loaded | None = None
        self.holds: dict[str, NameHold] = {loaded_as.name: loaded_as}
        self.loaded_as = loaded_as.name
        self.users = 0
        self.used_rows = 0
        self.last_used = 0.0

    def __repr__(self) -> str:
        rows = self.loaded.rows if self.loaded else 0
        return f"{self.shown_name} {self.state} users={self.users} rows={self.used_rows}/{rows}"

    @property
    def shown_name(self) -> str:
        """The name it was loaded under, while that holds it; else the oldest that does."""
        if self.loaded_as in self.holds or not self.holds:
            return self.loaded_as
        return next(iter(self.holds))

    @property
    def is_ready(self) -> bool:
        return self.state == "ready" and self.worker is not None and self.worker.is_alive

    @property
    def resident_bytes(self) -> int:
        """Measured by the worker, with its artifact where that is in memory; first the estimate.

        The vision tower's part is kept for it: it comes with the first image.
        """
        if self.loaded is not None:
            wanted = self.placement.in_memory
            beside = self.placement.tower_bytes + (wanted.artifact_bytes if wanted else 0)
            return self.loaded.resident_bytes + beside
        return self.placement.needed_bytes(self.context_length)

    def view(self) -> LoadedView:
        rows = self.loaded.rows if self.loaded else 0
        return LoadedView(
            key=self.key,
            state="unloading" if self.state == "ready" and not self.is_ready else self.state,
            context_length=self.context_length,
            users=self.users,
            free_rows=rows - self.used_rows,
            resident_bytes=self.resident_bytes,
            last_used=self.last_used,
        )


class ChatStream:
    """`Delta`s, `Progress` before them, then the end or a DaemonError. Closing it cancels."""

    def __init__(self, answers: AnswerStream) -> None:
        self._answers = answers

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta | Progress:
        answer = await anext(self._answers)
        if isinstance(answer, Delta | Progress):
            return answer
        raise Internal(f"the model runner answered a chat with {type(answer).__name__}")

    async def aclose(self) -> None:
        self._answers.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._answers.close()


class Lease:
    """Made by `Residency.acquire`. Use it in `async with`, or call `release`.

    A generating lease has one row of the worker, which is free again as soon as its first chat has
    ended or was taken back, whether or not its reader has noticed.
    """

    def __init__(
        self,
        resident: Resident,
        hold: NameHold,
        wish: Wish,
        on_change: Callable[[Lease], None],
    ) -> None:
        self.resident = resident
        self.hold = hold
        self.client = wish.client
        self._has_row = wish.wants_row
        self._on_change = on_change
        self._streams: set[AnswerStream] = set()
        self._is_released = False
        resident.users += 1
        resident.used_rows += wish.wants_row
        hold.users += 1

    def __repr__(self) -> str:
        return f"<Lease {self.hold.name} {'released' if self._is_released else 'held'}>"

    @property
    def is_released(self) -> bool:
        return self._is_released

    @property
    def loaded(self) -> Loaded:
        """What the worker said when it had loaded: context length, rows, capabilities, device."""
        assert self.resident.loaded is not None
        return self.resident.loaded

    def chat(self, chat: Chat) -> ChatStream:
        """Starts a generation. Never blocks. Raises WorkerDied, Invalid or NotYet."""
        self._require_sight(chat)
        return ChatStream(self._start(chat))

    async def embed(self, request: Embed) -> Embedded:
        return await self._ask(request, Embedded)

    async def rank(self, request: Rank) -> Ranked:
        return await self._ask(request, Ranked)

    async def count(self, request: CountTokens) -> int:
        self._require_sight(request.chat)
        return (await self._ask(request, Counted)).tokens

    async def render(self, request: Render) -> str:
        self._require_sight(request.chat)
        return (await self._ask(request, Rendered)).prompt

    def _require_sight(self, chat: Chat) -> None:
        """What was promised before it was loaded may not hold where it came to run. Raises NotYet."""
        blindness = self.resident.placement.blindness
        if blindness and any(message.images for message in chat.messages):
            raise NotYet(f"model '{self.hold.name}' takes no images here: {blindness}")

    def release(self) -> None:
        """Cancels what still runs and gives the model back. Never blocks; may be called again."""
        if self._is_released:
            return
        self._is_released = True
        for stream in list(self._streams):
            stream.close()
        self._free_row()
        self.resident.users -= 1
        self.hold.users -= 1
        self._on_change(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def _start(self, request: Question) -> AnswerStream:
        if self._is_released:
            raise Internal("a lease was used after its release")
        if self.resident.worker is None:
            raise WorkerDied(DIED)
        stream: AnswerStream | None = None

        def ended() -> None:
            if stream is not None:
                self._streams.discard(stream)
            if isinstance(request, Chat) and self._free_row():
                self._on_change(self)

        stream = self.resident.worker.start(request, ended)
        self._streams.add(stream)
        return stream

    async def _ask(self, request: Question, kind: type[SingleT]) -> SingleT:
        async with self._start(request) as stream:
            async for answer in stream:
                if isinstance(answer, kind):
                    return answer
        raise Internal(f"the model runner did not answer with {kind.__name__}")

    def _free_row(self) -> bool:
        had_row, self._has_row = self._has_row, False
        self.resident.used_rows -= had_row
        return had_row
