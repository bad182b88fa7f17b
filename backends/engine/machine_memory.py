"""How much memory this machine has left."""

from __future__ import annotations

import os
import pathlib


def available_memory_bytes() -> int:
    """What the system could give without swapping; half of all memory where it does not say."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
