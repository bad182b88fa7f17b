"""Anonymous memory for the KV cache: reserved at once, real only where it is touched.

Deals in byte ranges of whole pages and knows nothing of rows. On Linux pages can be moved from one
place to another without copying them; elsewhere `can_move` is False and the caller copies.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import cache

import numpy as np
from numpy.typing import NDArray

from backends.types import EngineError

# Python names the flag only in later versions; the number is Linux's and macOS's own.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", {"linux": 0x4000, "darwin": 0x40}.get(sys.platform, 0))
_GIVE_BACK = mmap.MADV_DONTNEED if sys.platform == "linux" else getattr(mmap, "MADV_FREE", 0)
# linux/mman.h: may move, to a fixed place, leaving the source mapped and empty (Linux 5.7).
_MOVE_FLAGS = 1 | 2 | 4


class RowMemory:
    """`size` bytes. Raises EngineError("memory") where the address space cannot be had."""

    def __init__(self, size: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
        try:
            self._memory = mmap.mmap(-1, max(size, mmap.PAGESIZE), flags=flags)
        except (OSError, OverflowError) as error:
            message = f"no room for a KV cache of {size} bytes: {error}"
            raise EngineError("memory", message) from error
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            self._memory.madvise(mmap.MADV_NOHUGEPAGE)  # else a touched byte costs 2 MB
        self._address = np.frombuffer(self._memory, np.uint8).ctypes.data

    @property
    def can_move(self) -> bool:
        return _can_remap()

    def array(self, dtype: np.dtype, shape: tuple[int, ...], offset: int) -> NDArray[np.generic]:
        """A view; the memory lives at least as long as it."""
        count = int(np.prod(shape))
        return np.frombuffer(self._memory, dtype, count, offset).reshape(shape)

    def give_back(self, offset: int, size: int) -> None:
        """The pages' content is gone and costs nothing any more."""
        if size > 0:
            self._memory.madvise(_GIVE_BACK, offset, size)

    def move(self, source: int, target: int, size: int) -> None:
        """Pages at offset `source` appear at `target`, whose own are dropped; only if `can_move`.

        Raises EngineError("internal"): then it is unknown where the content is.
        """
        if not _remap(self._address + source, self._address + target, size):
            raise EngineError("internal", "the system refused to move pages of the KV cache")


def _remap(source: int, target: int, size: int) -> bool:
    remap = ctypes.CDLL(None, use_errno=True).mremap
    remap.restype = ctypes.c_ssize_t
    remap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p,
    ]  # fmt: skip
    return remap(source, size, size, _MOVE_FLAGS, target) == target


@cache
def _can_remap() -> bool:
    """Tried once on two pages: older kernels and other systems say no."""
    if sys.platform != "linux":
        return False
    page = mmap.PAGESIZE
    with mmap.mmap(-1, 2 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[:4] = b"kept"
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        return _remap(address, address + page, page) and memory[page : page + 4] == b"kept"
