"""Takes from this process what reading a stranger's file does not need. Standard library only.

`confine` is called once, early: before threads exist (Landlock holds for the calling thread and those
it starts later) and after the input is open. It cannot be undone. Each layer that the system does
not offer is left out, and the names of those in force are returned for the log.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import resource
import sys
import sysconfig
from collections.abc import Sequence
from typing import TypedDict

from converters.confinement import landlock, parent, sandbox_profile, seccomp

__all__ = ["Limits", "confine", "die_with_parent"]

log = logging.getLogger("hearth.converters")
die_with_parent = parent.die_with_parent

OPEN_FILES = 256
# After the soft limit the system sends SIGXCPU, after the hard one SIGKILL.
_GRACE_SECONDS = 5


class Limits(TypedDict):
    """Arguments of `confine`."""

    read: Sequence[pathlib.Path]
    write: Sequence[pathlib.Path]
    data_bytes: int
    file_bytes: int
    cpu_seconds: int


def confine(
    *,
    read: Sequence[pathlib.Path] = (),
    write: Sequence[pathlib.Path] = (),
    data_bytes: int,
    file_bytes: int,
    cpu_seconds: int,
) -> tuple[str, ...]:
    """Limits memory, time, files, system calls and paths; returns the layers in force.

    `read` and `write` are files or folders with all below them; Python's own are added to `read`.
    `write` folders may be read too. `data_bytes` counts private writable memory, not mapped files.
    """
    layers = ["limits"]
    _limit(data_bytes, file_bytes, cpu_seconds)
    readable = [*_python_paths(), *read]
    if sys.platform == "linux":
        layers += _confine_linux(readable, write)
    elif sys.platform == "darwin":
        layers += sandbox_profile.apply(readable, write)
    log.info("confined by %s", ", ".join(layers))
    return tuple(layers)


def _limit(data_bytes: int, file_bytes: int, cpu_seconds: int) -> None:
    _lower(resource.RLIMIT_CORE, 0, 0)
    _lower(resource.RLIMIT_DATA, data_bytes, data_bytes)
    _lower(resource.RLIMIT_FSIZE, file_bytes, file_bytes)
    _lower(resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + _GRACE_SECONDS)
    _lower(resource.RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)


def _lower(kind: int, soft: int, hard: int) -> None:
    """Never raises a limit; some systems know a limit only by name."""
    _, ceiling = resource.getrlimit(kind)
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (soft, hard))


def _confine_linux(read: Sequence[pathlib.Path], write: Sequence[pathlib.Path]) -> list[str]:
    layers: list[str] = []
    for name, apply in (
        ("no_new_privs", seccomp.forbid_new_privileges),
        ("landlock", lambda: landlock.restrict(read, write)),
        ("seccomp", seccomp.filter_system_calls),
    ):
        try:
            layers.append(apply() or name)
        except OSError as error:
            log.warning("no %s here: %s", name, os.strerror(error.errno or 0))
    return layers


def _python_paths() -> list[pathlib.Path]:
    """What late imports and shared libraries are read from; never a bare root or home folder."""
    paths = [sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), *_SYSTEM_PATHS]
    paths += [entry for entry in sys.path if "site-packages" in entry or "dist-packages" in entry]
    found = {pathlib.Path(path).resolve() for path in paths}
    found.add(pathlib.Path(__file__).resolve().parents[1])
    too_much = {pathlib.Path("/"), pathlib.Path.home()}
    return sorted(path for path in found - too_much if path.exists())


_SYSTEM_PATHS = (
    "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/lib", "/lib64",
    "/etc/ld.so.cache", "/etc/localtime", "/proc/self", "/dev/null", "/dev/urandom",
    "/sys/devices/system/cpu", "/System/Library",
)  # fmt: skip
