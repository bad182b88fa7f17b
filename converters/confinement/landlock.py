"""Landlock: which files and folders the calling thread, and those it starts, may still open.

Structures and numbers are those of Linux's `landlock.h`; the system call numbers are the same on
every architecture. Rights of a newer kernel are handled where the kernel says it has them.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
from collections.abc import Sequence

from converters.confinement.kernel import system_call

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_PATH_BENEATH = 1

_WRITE_FILE, _READ_FILE, _READ_FOLDER = 1 << 1, 1 << 2, 1 << 3
_FIRST_RIGHTS = (1 << 13) - 1
_REFER, _TRUNCATE, _DEVICE_CONTROL = 1 << 13, 1 << 14, 1 << 15
_RIGHTS_BY_VERSION = ((2, _REFER), (3, _TRUNCATE), (5, _DEVICE_CONTROL))
_FILE_RIGHTS = 1 << 0 | _WRITE_FILE | _READ_FILE | _TRUNCATE | _DEVICE_CONTROL
_READ = _READ_FILE | _READ_FOLDER
# Making and removing of files and folders, but not of devices, sockets, pipes and links.
_REMOVE = 1 << 4 | 1 << 5
_MAKE = 1 << 7 | 1 << 8
_WRITE = _READ | _WRITE_FILE | _REMOVE | _MAKE | _TRUNCATE | _REFER
_BIND_AND_CONNECT = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


class _Ruleset(ctypes.Structure):
    _fields_ = [
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scope", ctypes.c_uint64),
    ]


class _PathRule(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def restrict(read: Sequence[pathlib.Path], write: Sequence[pathlib.Path]) -> str:
    """The layer's name with the kernel's version of it. Raises OSError where there is none."""
    version = system_call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_ASK_VERSION))
    rights = _FIRST_RIGHTS
    for since, right in _RIGHTS_BY_VERSION:
        rights |= right if version >= since else 0
    ruleset = _create(rights, version)
    try:
        for path in read:
            _allow(ruleset, path, _READ & rights)
        for path in write:
            _allow(ruleset, path, _WRITE & rights)
        _allow(ruleset, pathlib.Path("/dev/null"), (_WRITE_FILE | _READ_FILE) & rights)
        system_call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)
    return f"landlock {version}"


def _create(rights: int, version: int) -> int:
    """An older kernel wants the shorter structure that it knows."""
    ruleset = _Ruleset(rights, _BIND_AND_CONNECT, _ABSTRACT_SOCKETS_AND_SIGNALS)
    size = 8 if version < 4 else 16 if version < 6 else 24
    return system_call(
        _CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(size), ctypes.c_uint32(0)
    )


def _allow(ruleset: int, path: pathlib.Path, allowed: int) -> None:
    if not path.is_dir():
        allowed &= _FILE_RIGHTS
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = _PathRule(allowed, descriptor)
        system_call(
            _ADD_RULE,
            ctypes.c_int(ruleset),
            ctypes.c_int(_PATH_BENEATH),
            ctypes.byref(rule),
            ctypes.c_uint32(0),
        )
    finally:
        os.close(descriptor)
