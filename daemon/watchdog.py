"""Feeds systemd's watchdog for as long as the daemon is well: its loop on time, its workers endable."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping

from daemon.notify import notify

log = logging.getLogger(__name__)

_FEEDS_PER_LIMIT = 4


def watchdog_seconds(environment: Mapping[str, str]) -> float:
    """The limit that the service manager has set for this very process; 0 for none."""
    limit = environment.get("WATCHDOG_USEC", "")
    meant = environment.get("WATCHDOG_PID", str(os.getpid()))
    is_ours = limit.isdecimal() and meant == str(os.getpid())
    return int(limit) / 1e6 if is_ours else 0.0


async def feed_watchdog(limit_seconds: float, obstacle: Callable[[], str]) -> None:
    """Runs until it is cancelled. Says nothing while `obstacle` names one, nor after a late turn."""
    pause = limit_seconds / _FEEDS_PER_LIMIT
    clock = asyncio.get_running_loop().time
    shown = ""
    while True:
        due = clock() + pause
        await asyncio.sleep(pause)
        late = clock() - due
        found = obstacle() or (f"the event loop was {late:.1f} s late" if late > pause else "")
        if found and found != shown:
            log.error("the service manager's watchdog is not fed: %s", found)
        shown = found
        if not found:
            notify("WATCHDOG=1")
