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
# ioprio_set(2): who = 1 (one thread) or 2 (a group's processes); the class sits above bit 13, 3 is
# idle, 0 the default.
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}.get(platform.machine())
_IO_THREAD, _IO_GROUP = 1, 2
_IDLE_CLASS = 3 << 13


def set_background(pid: int, is_background: bool) -> None:
    """Of a process that leads its group: applies to all its threads and to the group's processes.

    What starts later inherits it. Never raises.
    """
    niceness, io_class = (_NICE, _IDLE_CLASS) if is_background else (0, 0)
    for thread in _threads(pid):
        _set_niceness(os.PRIO_PROCESS, thread, niceness)
        _set_io_class(_IO_THREAD, thread, io_class)
    _set_niceness(os.PRIO_PGRP, pid, niceness)
    _set_io_class(_IO_GROUP, pid, io_class)


def _threads(pid: int) -> list[int]:
    try:
        return [int(entry.name) for entry in pathlib.Path(f"/proc/{pid}/task").iterdir()]
    except (OSError, ValueError):
        return [pid]


def _set_niceness(which: int, who: int, value: int) -> None:
    with contextlib.suppress(OSError):
        os.setpriority(which, who, value)


def _set_io_class(which: int, who: int, value: int) -> None:
    if _IOPRIO_SET is not None and platform.system() == "Linux":
        ctypes.CDLL(None).syscall(_IOPRIO_SET, which, who, value)
