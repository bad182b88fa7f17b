"""How much memory the machine could still give. Read from the system, never guessed upwards.

Linux: MemAvailable, and the control group's limit where it is lower. Elsewhere: three quarters of
the physical memory, less what our own workers hold.
"""

from __future__ import annotations

import os
import pathlib

_PROC = pathlib.Path("/proc/meminfo")
_CGROUP = pathlib.Path("/sys/fs/cgroup")


def free_bytes(
    held_bytes: int, *, proc: pathlib.Path = _PROC, cgroup: pathlib.Path = _CGROUP
) -> int:
    """Bytes that a new worker could use; `held_bytes` is what our workers hold together."""
    available = _available(proc)
    if available is None:
        return max(0, physical_bytes() * 3 // 4 - held_bytes)
    limit = _cgroup_free(cgroup)
    return available if limit is None else min(available, limit)


def _available(proc: pathlib.Path) -> int | None:
    try:
        for line in proc.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cgroup_free(folder: pathlib.Path) -> int | None:
    """What the unit or container may still take (page cache counts as free); None without a limit."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((folder / "memory.current").read_text())
        cache = _stat(folder / "memory.stat", "inactive_file")
        return max(0, int(limit) - used + cache)
    except (OSError, ValueError):
        return None


def _stat(path: pathlib.Path, key: str) -> int:
    for line in path.read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def physical_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
