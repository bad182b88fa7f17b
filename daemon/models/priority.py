"""How much a converter may disturb: behind running requests it gets spare CPU and idle I/O only.

Best effort: an ordinary user may lower a process and not raise it again, so a converter that once
made way stays behind others. On an idle machine that costs nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import platform

_NICE = 10
# ioprio_set(2): who = 1 (one thread); the class sits above bit 13, 3 is idle, 0 the default.
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}.get(platform.machine())
_IDLE_CLASS = 3 << 13


def set_background(pid: int, is_background: bool) -> None:
    """Applies to every thread the process has now; later ones inherit. Never raises."""
    for thread in _threads(pid):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, _NICE if is_background else 0)
        _set_io_class(thread, _IDLE_CLASS if is_background else 0)


def _threads(pid: int) -> list[int]:
    try:
        return [int(entry.name) for entry in pathlib.Path(f"/proc/{pid}/task").iterdir()]
    except (OSError, ValueError):
        return [pid]


def _set_io_class(thread: int, value: int) -> None:
    if _IOPRIO_SET is not None and platform.system() == "Linux":
        ctypes.CDLL(None).syscall(_IOPRIO_SET, 1, thread, value)
