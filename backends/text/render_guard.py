"""Bounds the time and memory of code that a model's template steers. Main thread only.

An interval timer interrupts Python code; a native loop that cannot be interrupted ends the process
at twice the limit, through `faulthandler`, whose thread does not need the interpreter lock.
"""

from __future__ import annotations

import contextlib
import faulthandler
import pathlib
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator

# What one rendering may take, whatever the template's language.
RENDER_SECONDS = 2.0
RENDER_MEMORY_BYTES = 1 << 30
_TICK_SECONDS = 0.05
_STANDARD_ERROR = 2


class RenderLimit(BaseException):
    """A limit was met. Not an Exception: template code must not be able to swallow it."""


def resident_bytes() -> int:
    """Memory of this process in RAM now; where the system does not tell, the highest so far."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_bytes().split()[1])
    except (OSError, IndexError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * resource.getpagesize()


@contextlib.contextmanager
def render_guard(limit_seconds: float, memory_bytes: int) -> Iterator[None]:
    """Raises RenderLimit inside the block when it runs too long or the process grows too much.

    The growth is the whole process's: it is looked at only after the first tick, so that ordinary
    renderings never answer for what an engine allocates meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("templates are rendered on the main thread only")
    started = time.monotonic()
    memory_before = resident_bytes()

    def tick(_signal: int, _frame: object) -> None:
        if time.monotonic() - started > limit_seconds:
            raise RenderLimit(f"it ran longer than {limit_seconds:g} s")
        if resident_bytes() - memory_before > memory_bytes:
            raise RenderLimit(f"it took more than {memory_bytes >> 20} MiB of memory")

    handler_before = signal.signal(signal.SIGALRM, tick)
    delay_before, interval_before = signal.setitimer(
        signal.ITIMER_REAL, min(_TICK_SECONDS, limit_seconds), _TICK_SECONDS
    )
    faulthandler.dump_traceback_later(2 * limit_seconds, exit=True, file=_STANDARD_ERROR)
    try:
        yield
    finally:
        # A last tick may still raise here; the next would come much later than what follows.
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
            signal.signal(signal.SIGALRM, handler_before)
            if delay_before:
                left = max(delay_before - (time.monotonic() - started), 0.001)
                signal.setitimer(signal.ITIMER_REAL, left, interval_before)
