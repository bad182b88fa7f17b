"""How many prompt ids the next prefill chunk has, so that decoding clients do not wait long.

A client that decodes waits for one chunk and one decode run between two of its ids. The chunk is
chosen from the rate measured on earlier ones: the wait stays under `DECODE_GAP_SECONDS`, or is that
of the smallest chunk. Alone, chunks are larger, but never so large that a cancel waits for seconds.
"""

from __future__ import annotations

DECODE_GAP_SECONDS = 0.25
ALONE_SECONDS = 1.0
MIN_CHUNK = 32
MAX_CHUNK = 512
# Where the size of a chunk changes the numbers, requests that must repeat get always this one.
EXACT_CHUNK = 256
# What is left of the gap is for the unexpected: attention grows with the position, others compute.
_HEADROOM = 0.75


def plan_chunk(remaining: int, ids_per_second: float, seconds: float, most: int = MAX_CHUNK) -> int:
    """Ids to prefill next: what `seconds` allow, in steps of MIN_CHUNK, up to `most`.

    The last chunk of a prompt has at least two ids (a one-id run takes other kernels, and rounds
    differently, than the same id in a longer run), so one id is never left over.
    """
    wanted = int(ids_per_second * seconds) // MIN_CHUNK * MIN_CHUNK
    return plan_fixed_chunk(remaining, min(max(wanted, MIN_CHUNK), most))


def plan_fixed_chunk(remaining: int, chunk: int) -> int:
    """`chunk`, or what is left, or one less where that leaves a single id."""
    if remaining <= chunk:
        return remaining
    return chunk - 1 if remaining - chunk == 1 else chunk


class Pace:
    """Remembers the last measurements; half of each new one counts."""

    def __init__(self, most_chunk: int = MAX_CHUNK) -> None:
        self._most_chunk = most_chunk
        self._ids_per_second = 0.0
        self._decode_seconds = 0.0

    @property
    def seconds_per_id(self) -> float:
        """Of prefilling; 0 before anything was measured."""
        return 1.0 / self._ids_per_second if self._ids_per_second > 0 else 0.0

    def chunk(self, remaining: int, *, is_decoding: bool) -> int:
        gap = DECODE_GAP_SECONDS - self._decode_seconds if is_decoding else ALONE_SECONDS
        seconds = max(gap, 0.0) * _HEADROOM
        return plan_chunk(remaining, self._ids_per_second, seconds, self._most_chunk)

    def saw_prefill(self, ids: int, seconds: float) -> None:
        """Short chunks say little about the rate of long ones and are left out."""
        if ids < MIN_CHUNK // 2:
            return
        rate = ids / max(seconds, 1e-9)
        known = self._ids_per_second
        # A slower chunk counts at once: the gap is a promise, the speed is not.
        self._ids_per_second = (known + rate) / 2 if rate > known > 0 else rate

    def saw_decode(self, seconds: float) -> None:
        self._decode_seconds = (self._decode_seconds + seconds) / 2
