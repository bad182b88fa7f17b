"""Whether a worker that owes answers still moves: what counts as a sign, and for how long none may come."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from backends.types import Status
from daemon.residency.answer import UNREAD_BYTES, UNREAD_SECONDS

# This part of a limit without a sign, and it is called stalled; at the whole of it, it is ended.
_STALLED_PART = 0.2
# A machine that once needed so long for one step may need this many times as long for another.
_PATIENCE = 10.0


class WorkerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How patient the daemon is with one process.

    While requests run it is asked how it is every `probe_seconds`; no token, no progress and no
    engine step for `stuck_seconds` (longer where steps were seen to be slow) means that it is
    wedged, and so do `fruitless_seconds` of steps that bring no request any further. Then it is
    killed; what still lives `lost_seconds` later cannot be ended by us.
    """

    hello_seconds: float = 60.0
    probe_seconds: float = 5.0
    stuck_seconds: float = 300.0
    fruitless_seconds: float = 3600.0
    close_seconds: float = 5.0
    terminate_seconds: float = 2.0
    lost_seconds: float = 30.0
    unread_bytes: int = UNREAD_BYTES
    unread_seconds: float = UNREAD_SECONDS


class Liveness:
    """One worker's clock of signs. Times are seconds of `clock`; `check` is called at every probe."""

    def __init__(self, limits: WorkerLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._steps = self._moved = -1
        self._answer_at = self._step_at = clock()
        self._silence = self._longest_silence = 0.0

    def note_answer(self) -> None:
        """A piece, progress or a whole answer came; or nothing was owed until now."""
        self._answer_at = self._clock()

    def note_status(self, status: Status) -> None:
        """What it said of itself: prefilled chunks, sampled ids and embedded slices; engine steps."""
        if status.moved != self._moved:
            self._moved = status.moved
            self._answer_at = self._clock()
        if status.steps != self._steps:
            self._steps = status.steps
            self._step_at = self._clock()

    def forgive(self, seconds: float) -> None:
        """So long nobody listened here: the daemon itself was late."""
        self._answer_at += seconds
        self._step_at += seconds

    def check(self) -> str:
        """Why it must be ended; empty while it need not."""
        silence = self._silent_seconds()
        if silence < self._silence:  # it went on since the last check
            self._longest_silence = max(self._longest_silence, self._silence)
        self._silence = silence
        if silence > self._stuck_seconds():
            return f"it made no progress for {silence:.0f} seconds"
        fruitless = self._clock() - self._answer_at
        if fruitless > self._limits.fruitless_seconds:
            return f"it made no progress for {fruitless:.0f} seconds, though its engine steps"
        return ""

    @property
    def is_stalled(self) -> bool:
        """Without a sign for so long that people should know, if it owes anything."""
        fruitless = self._clock() - self._answer_at
        return (
            self._silent_seconds() > self._stuck_seconds() * _STALLED_PART
            or fruitless > self._limits.fruitless_seconds * _STALLED_PART
        )

    def _silent_seconds(self) -> float:
        return self._clock() - max(self._answer_at, self._step_at)

    def _stuck_seconds(self) -> float:
        limits = self._limits
        slow = min(self._longest_silence * _PATIENCE, limits.fruitless_seconds)
        return max(limits.stuck_seconds, slow)
