"""Caches of finished requests on disk: keys and values by position, states and full windows whole.

A window that is not full is plain positions. Nothing is converted: what is read back is, bit for bit,
what was computed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import mlx.core as mx
import msgspec
import numpy as np
from mlx import nn
from numpy.typing import NDArray

from backends.engine.prefix_files import DamagedPrefix, Found, PrefixFiles
from backends.engine.prefix_format import BLOCK_POSITIONS, PrefixForm
from backends.engine.saved_prefixes import SavedPrefixes
from backends.mlx import mlx_lm_internals as internals
from backends.mlx.mlx_lm_internals import CacheParts, Caches

logger = logging.getLogger(__name__)


class Kept(Protocol):
    """Caches of one row that hold `length` positions."""

    caches: Caches

    @property
    def length(self) -> int: ...

    def __hash__(self) -> int: ...


class _ArrayForm(msgspec.Struct, frozen=True, array_like=True):
    """`shape` of one that grows is without positions: 0 on axis 2."""

    numbers: str
    shape: tuple[int, ...]

    def shape_of(self, positions: int) -> tuple[int, ...]:
        """In bytes."""
        first, heads, _, size = self.shape
        return (first, heads, positions, size * self.dtype.size)

    @property
    def dtype(self) -> mx.Dtype:
        return getattr(mx, self.numbers)

    @property
    def position_bytes(self) -> int:
        return math.prod(self.shape_of(1))

    @property
    def whole_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.size


class _CacheForm(msgspec.Struct, frozen=True, array_like=True):
    """`CacheParts` without what is in the arrays."""

    kind: str
    growing: tuple[_ArrayForm, ...]
    whole: tuple[_ArrayForm | None, ...]
    counts: tuple[int, ...]


_FORMS = msgspec.msgpack.Decoder(list[_CacheForm])


class _CacheBytes:
    """`Holder` of kept caches."""

    def form_of(self, key: Kept) -> PrefixForm:
        return form_of(internals.parts_of(key.caches, key.length))

    def read_block(self, key: Kept, begin: int, end: int) -> bytes:
        arrays = [
            plane[..., begin:end, :]
            for part in internals.parts_of(key.caches, key.length)
            for plane in part.growing
        ]
        return b"".join(_bytes_of(array).tobytes() for array in arrays)

    def read_whole(self, key: Kept, begin: int, end: int) -> bytes:
        found, at = b"", 0
        for part in internals.parts_of(key.caches, key.length):
            for array in part.whole:
                size = 0 if array is None else array.nbytes
                if array is not None and at < end and begin < at + size:
                    flat = _bytes_of(array).reshape(-1)
                    found += flat[max(begin - at, 0) : end - at].tobytes()
                at += size
        return found


def form_of(parts: Sequence[CacheParts]) -> PrefixForm:
    forms = [
        _CacheForm(
            part.kind,
            tuple(_array_form(plane[..., :0, :]) for plane in part.growing),
            tuple(None if array is None else _array_form(array) for array in part.whole),
            part.counts,
        )
        for part in parts
    ]
    return PrefixForm(
        position_bytes=sum(plane.position_bytes for form in forms for plane in form.growing),
        whole_bytes=sum(array.whole_bytes for form in forms for array in form.whole if array),
        detail=msgspec.msgpack.encode(forms),
    )


def _array_form(array: mx.array) -> _ArrayForm:
    return _ArrayForm(str(array.dtype).rpartition(".")[2], tuple(array.shape))


def _bytes_of(array: mx.array) -> NDArray[np.uint8]:
    """Its memory, the last axis in bytes."""
    return np.asarray(mx.contiguous(array).view(mx.uint8))


class SavedCaches(SavedPrefixes[Kept]):
    """Of `model`; `seconds_per_id` is what prefilling one id takes, 0 while that is not known."""

    def __init__(
        self, model: nn.Module, files: PrefixFiles, seconds_per_id: Callable[[], float]
    ) -> None:
        super().__init__(_CacheBytes(), files, seconds_per_id)
        self._model = model

    def restored(self, found: Found) -> Caches | None:
        """Caches with the first `found.shared` positions; None: the file was damaged."""
        try:
            parts = _assembled(self.read(found), found)
        except DamagedPrefix as error:
            logger.warning("%s", error)
            return None
        return internals.rebuilt(self._model, parts, found.shared)


def knows_caches(model: nn.Module) -> Callable[[PrefixForm], bool]:
    """Whether a form is one of `model`'s caches."""
    kinds = internals.kinds_of(internals.make_caches(model))

    def knows(form: PrefixForm) -> bool:
        try:
            return [each.kind for each in _FORMS.decode(form.detail)] == kinds
        except msgspec.MsgspecError:
            return False

    return knows


def _assembled(blocks: Iterator[bytes], found: Found) -> list[CacheParts]:
    """Raises DamagedPrefix."""
    forms, shared = _FORMS.decode(found.form.detail), found.shared
    growing = [form for each in forms for form in each.growing]
    planes = [np.empty(form.shape_of(shared), np.uint8) for form in growing]
    length, whole = 0, bytearray()
    for block in blocks:
        if length < shared:
            positions = min(BLOCK_POSITIONS, shared - length)
            _place(block, planes, length, positions)
            length += positions
        else:
            whole += block
    planes.reverse()
    return [_parts(form, planes, whole) for form in forms]


def _place(block: bytes, planes: Sequence[NDArray[np.uint8]], begin: int, positions: int) -> None:
    """The first `positions` of a block, to where `begin` is in every plane."""
    per_position = sum(plane.shape[1] * plane.shape[3] for plane in planes)
    held, offset = len(block) // max(per_position, 1), 0
    for plane in planes:
        shape = (plane.shape[1], held, plane.shape[3])
        piece = np.frombuffer(block, np.uint8, math.prod(shape), offset).reshape(shape)
        plane[0, :, begin : begin + positions] = piece[:, :positions]
        offset += piece.size


def _parts(form: _CacheForm, planes: list[NDArray[np.uint8]], whole: bytearray) -> CacheParts:
    """Takes its planes from the end of `planes`, and its other arrays from the front of `whole`."""
    growing = tuple(mx.array(planes.pop()).view(each.dtype) for each in form.growing)
    arrays: list[mx.array | None] = []
    for each in form.whole:
        if each is None:
            arrays.append(None)
            continue
        data = np.frombuffer(bytes(whole[: each.whole_bytes]), np.uint8)
        del whole[: each.whole_bytes]
        arrays.append(mx.array(data).view(each.dtype).reshape(each.shape))
    return CacheParts(form.kind, growing, tuple(arrays), form.counts)
