"""Which devices failed for which weights, and for how long they are passed over.

A failure may have been of the moment: memory that another program held, a driver that was being
updated. So every device is tried again after a while, which doubles with each failure, and once as
soon as a worker gives memory of that device back.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

FIRST_WAIT_SECONDS = 10 * 60.0
LONGEST_WAIT_SECONDS = 6 * 3600.0
# A failure that long ago says nothing about the next one.
FORGOTTEN_SECONDS = 24 * 3600.0


class _Failure(msgspec.Struct, kw_only=True):
    reason: str
    count: int
    failed_at: float
    wait_seconds: float


class Avoidance:
    """Weights by source id, devices by target. Owned by the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: dict[tuple[str, str], _Failure] = {}

    def remember(self, source: str, target: str, reason: str) -> None:
        now, last = self._clock(), self._failures.get((source, target))
        is_new = last is None or now - last.failed_at > FORGOTTEN_SECONDS
        count = 1 if is_new or last is None else last.count + 1
        wait = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** (count - 1))
        self._failures[source, target] = _Failure(
            reason=reason, count=count, failed_at=now, wait_seconds=wait
        )

    def gave_back(self, target: str) -> None:
        """A worker there has ended. What failed once may fit now; what failed again waits."""
        for (_, failed_target), failure in self._failures.items():
            if failed_target == target and failure.count == 1:
                failure.wait_seconds = 0.0

    def reasons(self, source: str) -> dict[str, str]:
        """Target → why it is passed over now, and for how long."""
        now = self._clock()
        return {
            target: f"{failure.reason} (tried again after {failure.wait_seconds / 60:.0f} min)"
            for (failed_source, target), failure in self._failures.items()
            if failed_source == source and now - failure.failed_at < failure.wait_seconds
        }
