"""Matrices, norms, activations, rotations and attention of a vision tower on MLX."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from backends.mlx.tower_form import AttentionForm, CodesForm, NormForm

# MLX's kernel makes whole squares of scores for heads of most sizes: queries come in pieces.
SCORE_BYTES = 64 << 20
# Windows that look at themselves only are put together up to so many patches.
_WINDOW_PATCHES = 1024
_QUICK_ALPHA = 1.702


class TowerArrays:
    """Arrays by name, all floats in one type of numbers but the scales of 4-bit floats."""

    def __init__(
        self, arrays: Mapping[str, mx.array], codes: Mapping[str, CodesForm], numbers: mx.Dtype
    ) -> None:
        self._arrays = {name: _cast(array, numbers) for name, array in arrays.items()}
        self._codes = codes
        mx.eval(list(self._arrays.values()))  # by now no thread's own

    def __getitem__(self, name: str) -> mx.array:
        return self._arrays[name]

    def linear(self, path: str, x: mx.array) -> mx.array:
        weight, codes = self._arrays[f"{path}.weight"], self._codes.get(path)
        if codes is None:
            x = x @ weight.T
        else:
            x = mx.quantized_matmul(
                x,
                weight,
                scales=self._arrays[f"{path}.scales"],
                biases=self._arrays.get(f"{path}.biases"),
                group_size=codes.group_size,
                bits=codes.bits,
                mode=codes.mode,
            )
        bias = self._arrays.get(f"{path}.bias")
        return x if bias is None else x + bias

    def norm(self, norm: NormForm | None, x: mx.array) -> mx.array:
        if norm is None:
            return x
        weight, bias = self._arrays[f"{norm.path}.weight"], self._arrays.get(f"{norm.path}.bias")
        if norm.is_centered:
            return mx.fast.layer_norm(x, weight, bias, norm.epsilon)
        normed = mx.fast.rms_norm(x, weight, norm.epsilon)
        return normed if bias is None else normed + bias


def _cast(array: mx.array, numbers: mx.Dtype) -> mx.array:
    return array.astype(numbers) if mx.issubdtype(array.dtype, mx.floating) else array


def bent(activation: str, x: mx.array) -> mx.array:
    """Written out: what MLX has compiles itself."""
    match activation:
        case "gelu":
            return 0.5 * x * (1 + mx.erf(x * math.sqrt(0.5)))
        case "gelu_tanh":
            inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
            return 0.5 * x * (1 + mx.tanh(inner))
        case "gelu_quick":
            return x * mx.sigmoid(_QUICK_ALPHA * x)
    return x * mx.sigmoid(x)


class Rotation(NamedTuple):
    """`cos` and `sin` [P, pairs] turn numbers i and i + pairs of a head, or neighbours."""

    cos: mx.array
    sin: mx.array
    is_of_neighbours: bool

    def turn(self, x: mx.array) -> mx.array:
        """x: [N, heads, P, head size]."""
        pairs = self.cos.shape[-1]
        if self.is_of_neighbours:
            first, second = x[..., 0::2], x[..., 1::2]
        else:
            first, second = x[..., :pairs], x[..., pairs:]
        turned = [
            first * self.cos - second * self.sin,
            second * self.cos + first * self.sin,
        ]
        if self.is_of_neighbours:
            return mx.stack(turned, axis=-1).reshape(x.shape)
        return mx.concatenate(turned, axis=-1)


class Piece(NamedTuple):
    """Queries of patches `begin` to `end` look at keys `first` to `last`, where `mask` lets them."""

    begin: int
    end: int
    first: int
    last: int
    mask: mx.array | None = None


def whole_pieces(tiles: int, heads: int, patches: int) -> list[Piece]:
    """Every patch sees every other."""
    rows = max(1, SCORE_BYTES // (4 * tiles * heads * patches))
    return [
        Piece(begin, min(begin + rows, patches), 0, patches) for begin in range(0, patches, rows)
    ]


def window_pieces(segments: NDArray[np.int64], heads: int) -> list[Piece]:
    """Patches see those of their own segment. Segments that lie in one piece need no other keys."""
    patches = len(segments)
    changes = np.flatnonzero(np.diff(segments)) + 1
    if len(changes) + 1 != len(np.unique(segments)):
        return [
            piece._replace(mask=mx.array(segments[piece.begin : piece.end, None] == segments))
            for piece in whole_pieces(1, heads, patches)
        ]
    return list(_joined_windows(segments, [0, *changes.tolist(), patches], heads))


def _joined_windows(segments: NDArray[np.int64], borders: list[int], heads: int) -> Iterator[Piece]:
    begin = 0
    for end, following in zip(borders[1:], [*borders[2:], math.inf], strict=True):
        if following - begin <= _WINDOW_PATCHES:
            continue
        rows = max(1, SCORE_BYTES // (4 * heads * (end - begin)))
        for first in range(begin, end, rows):
            last = min(first + rows, end)
            mask = mx.array(segments[first:last, None] == segments[begin:end])
            yield Piece(first, last, begin, end, mask)
        begin = end


def attend(
    arrays: TowerArrays,
    form: AttentionForm,
    x: mx.array,
    rotation: Rotation | None,
    pieces: list[Piece],
    look: Callable[[mx.array], mx.array],
) -> mx.array:
    """From the normed [N, P, E] to the branch. `look` computes a piece, or stops where that is wished."""
    if len(form.inputs) == 1:
        given = mx.split(arrays.linear(form.inputs[0], x), 3, axis=-1)
    else:
        given = [arrays.linear(path, x) for path in form.inputs]
    query, key = (
        _prepared(arrays, form, norm, part, rotation)
        for norm, part in ((form.query_norm, given[0]), (form.key_norm, given[1]))
    )
    value = _heads(given[2], form.heads)
    found = [
        look(
            mx.fast.scaled_dot_product_attention(
                query[:, :, piece.begin : piece.end],
                key[:, :, piece.first : piece.last],
                value[:, :, piece.first : piece.last],
                scale=query.shape[-1] ** -0.5,
                mask=piece.mask,
            )
        )
        for piece in pieces
    ]
    joined = mx.concatenate(found, axis=2).transpose(0, 2, 1, 3)
    return arrays.linear(form.output, joined.reshape(*x.shape[:2], -1))


def _heads(x: mx.array, heads: int) -> mx.array:
    """[N, P, heads · size] → [N, heads, P, size]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _prepared(
    arrays: TowerArrays,
    form: AttentionForm,
    norm: NormForm | None,
    x: mx.array,
    rotation: Rotation | None,
) -> mx.array:
    """Queries or keys as [N, heads, P, size], normed and rotated where they are."""
    if norm and not form.has_norm_per_head:
        x = arrays.norm(norm, x)
    x = _heads(x, form.heads)
    if norm and form.has_norm_per_head:
        x = arrays.norm(norm, x)
    return rotation.turn(x) if rotation else x
