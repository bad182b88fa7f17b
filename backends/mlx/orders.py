"""What the first rank of a model tells the others: each change to caches, and each run, in order.

Ranks are processes that hold a part of one model. The first has the engine; the others only follow,
so nothing they do depends on their own clock, memory or random numbers. Orders travel as msgpack
bytes through the group itself, so they can never overtake what the model's own parts exchange.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import msgspec
import numpy as np

# One exchange carries this much: few orders need more than a single one.
FRAME_WORDS = 256
MAX_ORDER_BYTES = 64 << 20
_HEAD_BYTES = 4 * (FRAME_WORDS - 1)


class Make(msgspec.Struct, frozen=True, tag=True):
    """Empty caches, known as `made` from now on."""

    made: int


class Batch(msgspec.Struct, frozen=True, tag=True):
    made: int
    rows: list[int]


class Extend(msgspec.Struct, frozen=True, tag=True):
    batch: int
    other: int


class Filter(msgspec.Struct, frozen=True, tag=True):
    batch: int
    places: list[int]


class Row(msgspec.Struct, frozen=True, tag=True):
    made: int
    batch: int
    place: int


class Trim(msgspec.Struct, frozen=True, tag=True):
    caches: int
    positions: int


class Prefix(msgspec.Struct, frozen=True, tag=True):
    made: int
    caches: int
    held: int
    wanted: int


class Drop(msgspec.Struct, frozen=True, tag=True):
    caches: list[int]


class Numbers(msgspec.Struct, frozen=True, tag=True):
    """The type that the model computes in from now on, by MLX's name."""

    name: str


class Run(msgspec.Struct, frozen=True, tag=True):
    """`ids` [rows, ids] through the model."""

    caches: int
    ids: list[list[int]]


class Leave(msgspec.Struct, frozen=True, tag=True):
    pass


Order = Make | Batch | Extend | Filter | Row | Trim | Prefix | Drop | Numbers | Run | Leave
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Order])


def tell(group: mx.distributed.Group, orders: list[Order]) -> None:
    """To all other ranks, which must be hearing. Raises ValueError for orders beyond the bound."""
    data = _encoder.encode(orders)
    if len(data) > MAX_ORDER_BYTES:
        raise ValueError(f"orders of {len(data)} bytes")
    head, rest = data[:_HEAD_BYTES], data[_HEAD_BYTES:]
    frame = np.zeros(FRAME_WORDS, np.int32)
    frame[0] = len(data)
    frame[1:] = _words(head, FRAME_WORDS - 1)
    _summed(group, frame)
    if rest:
        _summed(group, _words(rest, -(-len(rest) // 4)))


def hear(group: mx.distributed.Group) -> list[Order]:
    """Waits for the first rank. Raises ValueError, msgspec.MsgspecError for what are no orders."""
    frame = _summed(group, np.zeros(FRAME_WORDS, np.int32))
    size = int(frame[0])
    if not 0 < size <= MAX_ORDER_BYTES:
        raise ValueError(f"orders of {size} bytes")
    data = frame[1:].tobytes()[:size]
    left = size - len(data)
    if left > 0:
        data += _summed(group, np.zeros(-(-left // 4), np.int32)).tobytes()[:left]
    return _decoder.decode(data)


def _words(data: bytes, count: int) -> Any:
    return np.frombuffer(data.ljust(4 * count, b"\0"), np.int32)


def _summed(group: mx.distributed.Group, words: Any) -> Any:
    """Only the first rank's words are not zero, so their sum is what it says."""
    total = mx.distributed.all_sum(mx.array(words), group=group)
    mx.eval(total)
    return np.array(total, np.int32)
