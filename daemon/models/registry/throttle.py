"""How fast, and when, models may be fetched: a bandwidth cap and a window of quiet hours."""

from __future__ import annotations

import asyncio
import datetime
import re
import time
from collections.abc import Callable

import msgspec

_WINDOW = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})")
_BURST_SECONDS = 0.25


class QuietHours(msgspec.Struct, frozen=True):
    """Minutes after local midnight; may run over midnight. Nothing is fetched inside it."""

    start_minute: int
    end_minute: int

    def seconds_left(self, now: datetime.datetime) -> float:
        """Until the window ends; 0 outside it."""
        minute = now.hour * 60 + now.minute
        span = (self.end_minute - self.start_minute) % 1440
        into = (minute - self.start_minute) % 1440
        return (span - into) * 60.0 - now.second if into < span else 0.0


def parse_quiet_hours(text: str) -> QuietHours:
    """`HH:MM-HH:MM`. Raises ValueError."""
    match = _WINDOW.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"quiet hours look like 08:00-23:30, not {text!r}")
    hours = [int(part) for part in match.groups()]
    if max(hours[0], hours[2]) > 24 or max(hours[1], hours[3]) > 59:
        raise ValueError(f"quiet hours {text!r} are no time of day")
    return QuietHours((hours[0] * 60 + hours[1]) % 1440, (hours[2] * 60 + hours[3]) % 1440)


class Throttle:
    """Shared by every download of the daemon; used on the event loop only.

    `spent_bytes` is all that came in.
    """

    def __init__(
        self,
        bytes_per_second: int = 0,
        quiet: QuietHours | None = None,
        *,
        now: Callable[[], datetime.datetime] = datetime.datetime.now,
    ) -> None:
        self._rate = bytes_per_second
        self._quiet = quiet
        self._now = now
        self._free_at = 0.0
        self.spent_bytes = 0

    def quiet_seconds(self) -> float:
        """How long fetching must still wait for the end of the quiet hours."""
        return self._quiet.seconds_left(self._now()) if self._quiet else 0.0

    async def wait_for_quiet_end(self) -> None:
        """Returns at once outside the quiet hours."""
        while (wait := self.quiet_seconds()) > 0:  # noqa: ASYNC110  # only the clock ends it
            await asyncio.sleep(min(wait, 30.0))

    async def spend(self, count: int) -> None:
        """Waits until more than the `count` bytes that came in may come in."""
        self.spent_bytes += count
        if self._quiet:
            await self.wait_for_quiet_end()
        if self._rate <= 0:
            return
        now = time.monotonic()
        self._free_at = max(self._free_at, now - _BURST_SECONDS) + count / self._rate
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)
