"""One request's answer on its way from a worker to whoever reads it.

The worker's socket is always drained into here, so a slow reader can never stall a worker. Pieces
that nobody has read yet are merged when they are; too many or too old ones cancel the request.
Every stream ends exactly once: with a closing message, or with one raised DaemonError.
Owned by the event loop; `WorkerProcess` pushes, one reader iterates.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from backends.types import (
    Counted,
    Delta,
    Embedded,
    Failed,
    FromWorker,
    Loaded,
    Logprob,
    Progress,
    Ranked,
    Rendered,
    RequestId,
    Status,
)
from daemon.errors import Cancelled, DaemonError, error_from_failed

UNREAD_BYTES = 4 << 20
UNREAD_SECONDS = 60.0
# What one small piece costs beside its text; keeps the bound honest for one-character deltas.
_PIECE_BYTES = 64

SingleAnswer = Loaded | Embedded | Ranked | Counted | Rendered | Status
Answer = Delta | Progress | SingleAnswer


def is_closing(message: FromWorker) -> bool:
    """Whether a worker sends nothing more for this request after `message`."""
    match message:
        case Delta():
            return message.finish is not None
        case Progress():
            return False
        case _:
            return True


def merge_deltas(pieces: list[Delta]) -> Delta:
    """One Delta that says what `pieces` said, none of which carries a finish."""
    if len(pieces) == 1:
        return pieces[0]
    return Delta(
        request_id=pieces[0].request_id,
        text="".join(piece.text for piece in pieces),
        thinking="".join(piece.thinking for piece in pieces),
        tool_calls=tuple(call for piece in pieces for call in piece.tool_calls),
        logprobs=tuple(entry for piece in pieces for entry in piece.logprobs),
    )


def _logprob_bytes(entry: Logprob) -> int:
    return _PIECE_BYTES + sum(_logprob_bytes(other) for other in entry.top)


def _delta_bytes(delta: Delta) -> int:
    calls = sum(len(call.arguments) + len(call.name) for call in delta.tool_calls)
    logprobs = sum(_logprob_bytes(entry) for entry in delta.logprobs)
    return _PIECE_BYTES + len(delta.text) + len(delta.thinking) + calls + logprobs


class AnswerStream:
    """An async iterator of `Answer`. Close it (or leave its `async with`) to cancel the request.

    `on_end` is called once, when the worker is done with the request or no longer wanted for it,
    with True when the worker must still be told to stop.
    """

    def __init__(
        self,
        request_id: RequestId,
        on_end: Callable[[bool], None],
        *,
        unread_bytes: int = UNREAD_BYTES,
        unread_seconds: float = UNREAD_SECONDS,
    ) -> None:
        self.request_id = request_id
        self._on_end = on_end
        self._limit_bytes = unread_bytes
        self._limit_seconds = unread_seconds
        self._deltas: list[Delta] = []
        self._progress: Progress | None = None
        self._unread_bytes = 0
        self._unread_since: float | None = None
        self._last: Answer | DaemonError | None = None
        self._is_ended = False
        self._is_read = False
        self._something = asyncio.Event()

    def __repr__(self) -> str:
        state = "ended" if self._is_ended else "open"
        return f"<AnswerStream {self.request_id} {state}, {self._unread_bytes} bytes unread>"

    # ---- the worker's side ----

    def push(self, message: FromWorker) -> None:
        """Takes one message of the worker; cancels the request when too much lies unread."""
        if self._is_ended:
            return
        if isinstance(message, Failed):
            self.fail(error_from_failed(message))
        elif is_closing(message):
            self._end(message, tell_worker=False)
        elif isinstance(message, Progress):
            self._progress = message
        elif isinstance(message, Delta):
            self._hold(message)
        self._something.set()

    def fail(self, error: DaemonError) -> None:
        """Ends the stream with `error`, raised after what was already received."""
        self._end(error, tell_worker=False)

    def check_overdue(self) -> None:
        """Cancels the request when its reader has let pieces lie for too long."""
        if self._unread_since is None or self._is_ended:
            return
        if time.monotonic() - self._unread_since > self._limit_seconds:
            self._abandon(f"the answer was not read for {self._limit_seconds:g} seconds")

    def _hold(self, delta: Delta) -> None:
        self._deltas.append(delta)
        self._unread_bytes += _delta_bytes(delta)
        if self._unread_since is None:
            self._unread_since = time.monotonic()
        if self._unread_bytes > self._limit_bytes:
            self._abandon(f"more than {self._limit_bytes} bytes of the answer were not read")

    def _abandon(self, message: str) -> None:
        self._forget()
        self._end(Cancelled(f"request canceled: {message}"), tell_worker=True)

    def _end(self, last: Answer | DaemonError | None, *, tell_worker: bool) -> None:
        if self._is_ended:
            return
        self._is_ended = True
        self._last = last
        self._something.set()
        self._on_end(tell_worker)

    # ---- the reader's side ----

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Answer:
        while True:
            if self._is_read:
                raise StopAsyncIteration
            if (piece := self._take()) is not None:
                return piece
            if self._is_ended:
                return self._finish()
            self._something.clear()
            await self._something.wait()

    def _take(self) -> Answer | None:
        """What was received since the last call, as one piece; the newest progress before any text."""
        progress, self._progress = self._progress, None
        if progress is not None:
            return progress
        deltas = self._deltas
        self._forget()
        return merge_deltas(deltas) if deltas else None

    def _forget(self) -> None:
        self._progress, self._deltas = None, []
        self._unread_bytes, self._unread_since = 0, None

    def _finish(self) -> Answer:
        self._is_read = True
        if isinstance(self._last, DaemonError):
            raise self._last
        if self._last is None:
            raise StopAsyncIteration
        return self._last

    def close(self) -> None:
        """Takes the request back unless it has ended. Never blocks; may be called again."""
        self._is_read = True
        self._forget()
        self._end(None, tell_worker=True)

    async def aclose(self) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
