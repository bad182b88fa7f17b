"""What ties a worker to its daemon and to the machine: end of file, signals, memory pressure.

Nothing here knows of requests. The watchdog is the last resort: it ends the process without asking
any other thread.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import queue
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable

GRACE_SECONDS = 5.0
EXIT_STUCK = 75
_PR_SET_PDEATHSIG = 1
_OOM_SCORE = "500"


_reasons: list[str] = []


def leave_because(reason: str) -> None:
    """From any thread: the process shall end, and what it had in hand is told why."""
    _reasons.append(reason)
    os.kill(os.getpid(), signal.SIGTERM)


def reason_to_leave() -> str:
    return _reasons[0] if _reasons else "the worker was told to stop"


class Watchdog:
    """Ends the process `grace_seconds` after the daemon hung up, or after `arm`; then nothing asks."""

    def __init__(self, connection: socket.socket, grace_seconds: float = GRACE_SECONDS) -> None:
        self._connection = connection
        self._grace_seconds = grace_seconds
        # Not an Event: a signal handler that sets one while its thread is setting it waits for itself.
        self._armed = queue.SimpleQueue[None]()
        threading.Thread(target=self._wait_for_hangup, name="hangup", daemon=True).start()
        threading.Thread(target=self._wait_and_leave, name="watchdog", daemon=True).start()

    def arm(self) -> None:
        """From any thread, also inside of a signal handler."""
        self._armed.put(None)

    def _wait_for_hangup(self) -> None:
        """Asks for no event: only the other end's closing wakes it, whatever the main thread does."""
        poll = select.poll()
        poll.register(self._connection.fileno(), 0)
        poll.poll()
        self.arm()

    def _wait_and_leave(self) -> None:
        self._armed.get()
        threading.Event().wait(self._grace_seconds)
        os._exit(EXIT_STUCK)


def follow_parent() -> None:
    """Linux: SIGTERM when the daemon's thread that started us ends. Elsewhere end of file must do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def prefer_for_oom_kill() -> None:
    """Under memory pressure a worker should go before its daemon. Best effort."""
    try:
        pathlib.Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    except OSError:
        return


def on_terminate(leave: Callable[[], None]) -> None:
    """SIGTERM calls `leave` on the main thread; SIGINT is the daemon's business, not ours."""
    signal.signal(signal.SIGTERM, lambda _signal, _frame: leave())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
