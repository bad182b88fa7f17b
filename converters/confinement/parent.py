"""A child does not outlive the daemon that started it, however the daemon ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from converters.confinement.kernel import set_parent_death_signal

_POLL_SECONDS = 1.0


def die_with_parent(parent_pid: int | None = None) -> None:
    """SIGTERM to this process when its parent ends. To be called from the main thread.

    `parent_pid` is who started it, where the child was told: a parent that ended before this call
    is then noticed too. On Linux the kernel sends the signal when the *thread* that started this
    process ends; elsewhere a thread looks once a second.
    """
    expected = os.getppid() if parent_pid is None else parent_pid
    if sys.platform == "linux":
        set_parent_death_signal(signal.SIGTERM)
    else:
        threading.Thread(target=_watch, args=(expected,), name="parent-watch", daemon=True).start()
    if os.getppid() != expected:
        signal.raise_signal(signal.SIGTERM)


def _watch(expected: int) -> None:
    while os.getppid() == expected:
        time.sleep(_POLL_SECONDS)
    signal.raise_signal(signal.SIGTERM)
