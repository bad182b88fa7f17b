"""System calls that Python has no function for, by number, with errors as OSError."""

from __future__ import annotations

import ctypes
import os

_NO_NEW_PRIVILEGES = 38
_PARENT_DEATH_SIGNAL = 1


def system_call(number: int, *arguments: object) -> int:
    """The call's result. Raises OSError where it fails."""
    library = ctypes.CDLL(None, use_errno=True)
    result = library.syscall(ctypes.c_long(number), *arguments)
    return _checked(result)


def set_no_new_privileges() -> None:
    _process_control(_NO_NEW_PRIVILEGES, 1)


def set_parent_death_signal(signal_number: int) -> None:
    _process_control(_PARENT_DEATH_SIGNAL, signal_number)


def _process_control(option: int, value: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    _checked(library.prctl(option, ctypes.c_ulong(value), zero, zero, zero))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
