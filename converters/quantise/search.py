"""The best scale, and minimum, for groups of weights: weighted least squares over candidates.

Method: each candidate scale rounds the weights to codes; for those codes the scale and minimum with
the least weighted squared error have a closed form; the candidate whose fit explains most is taken.
Groups are columns here, [weights in a group, groups]: sums over a group are then sums of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_LEAST_RANGE = np.float32(1e-30)
# Of a determinant beside its first product; below it is rounding.
_LEAST_SPREAD = np.float32(1e-6)


class _Fit(NamedTuple):
    """`x ≈ scale*code + offset` and the part of the weighted squares that this explains, [n] each."""

    scale: Floats
    offset: Floats
    explained: Floats


def fit_affine(x: Floats, most: int, stages: Sequence[Sequence[float]]) -> tuple[Floats, Floats]:
    """Scale and minimum [n], neither negative, for `x ≈ scale*code - minimum`, codes 0 to `most`.

    x is f32 [group, n]. A weight counts by its size: |x| plus the group's root mean square. Each
    stage spreads the codes from the best minimum so far to the largest weight, over `most` plus each
    of its numbers.
    """
    importance = np.abs(x)
    importance += np.sqrt(_products(x, x) / np.float32(len(x)))
    high, offset = x.max(axis=0), np.minimum(x.min(axis=0), np.float32(0))
    best = _Fit(np.zeros_like(high), np.zeros_like(high), np.zeros_like(high))
    for stage in stages:
        widths = np.array(stage, np.float32) + np.float32(most)
        fit = _best_of(x, importance, offset, widths[:, None] * _inverse(high - offset), most)
        is_better = fit.explained > best.explained
        pairs = zip(fit, best, strict=True)
        best = _Fit(*(np.where(is_better, new, old) for new, old in pairs))
        offset = best.offset
    return best.scale, -best.offset


def _best_of(x: Floats, importance: Floats, low: Floats, inverses: Floats, most: int) -> _Fit:
    """Codes are (x - low) times each candidate of `inverses` [candidates, n], rounded."""
    above = x - low
    sums = np.empty((3, *inverses.shape), np.float32)
    codes, weighted = np.empty_like(x), np.empty_like(x)
    for index, inverse in enumerate(inverses):
        np.multiply(above, inverse, out=codes)
        np.rint(codes, out=codes)
        np.clip(codes, np.float32(0), np.float32(most), out=codes)
        np.multiply(importance, codes, out=weighted)
        np.add.reduce(weighted, axis=0, out=sums[0, index])
        _products(weighted, codes, sums[1, index])
        _products(weighted, x, sums[2, index])
    return _solved(importance.sum(axis=0), _products(importance, x), sums)


def _solved(total: Floats, total_x: Floats, sums: Floats) -> _Fit:
    """The best candidate, from the sums of weighted codes, squares and products [candidates, n].

    Only what lies below zero can be written as a minimum. Where all codes are equal the two unknowns
    are one: then it is the scale, or the minimum where all codes are 0.
    """
    first, second, product = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        determinant = total * second - first * first
        scale = (total * product - total_x * first) / determinant
        offset = (second * total_x - first * product) / determinant
        is_flat = determinant <= _LEAST_SPREAD * total * second
        through_zero = is_flat | (offset > 0)
        scale = np.where(through_zero, product / second, scale)
        lowest = np.where(total > 0, np.minimum(total_x / total, np.float32(0)), np.float32(0))
    offset[through_zero] = 0
    has_no_codes = ~(second > 0)
    scale[has_no_codes | ~(scale > 0)] = 0
    offset = np.where(has_no_codes, lowest, offset)
    explained = scale * product + offset * total_x
    best = np.argmax(explained, axis=0)[None]
    return _Fit(*(np.take_along_axis(each, best, 0)[0] for each in (scale, offset, explained)))


def fit_symmetric(x: Floats, most: int, widths: Sequence[float]) -> Floats:
    """Scale [n], of either sign, for `x ≈ scale*code`, codes -`most` to `most`-1.

    x is f32 [group, n]. The largest weight lies on the side with one code more, and gets the code
    `most` plus each number of `widths`; a weight counts by its square.
    """
    importance = x * x
    weighted_x = importance * x
    inverse = _inverse(-signed_extreme(x))
    sums = np.empty((2, len(widths), x.shape[1]), np.float32)
    codes, weighted = np.empty_like(x), np.empty_like(x)
    for index, width in enumerate(widths):
        np.multiply(x, np.float32(most + width) * inverse, out=codes)
        np.rint(codes, out=codes)
        np.clip(codes, np.float32(-most), np.float32(most - 1), out=codes)
        _products(weighted_x, codes, sums[0, index])
        np.multiply(importance, codes, out=weighted)
        _products(weighted, codes, sums[1, index])
    product, second = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = product / second
    scale[~np.isfinite(scale)] = 0
    best = np.argmax(scale * product, axis=0)[None]
    return np.take_along_axis(scale, best, 0)[0]


def signed_extreme(x: Floats) -> Floats:
    """Of each column of f32 [group, n] the number farthest from zero, with its sign."""
    high, low = x.max(axis=0), x.min(axis=0)
    return np.where(high >= -low, high, low)


def _inverse(ranges: Floats) -> Floats:
    """1 / range, 0 where there is next to none: such groups get the code 0 throughout."""
    is_tiny = np.abs(ranges) < _LEAST_RANGE
    return np.where(is_tiny, np.float32(0), 1 / np.where(is_tiny, np.float32(1), ranges))


def _products(left: Floats, right: Floats, out: Floats | None = None) -> Floats:
    """Σ left·right over each column."""
    return np.einsum("in,in->n", left, right, out=out)
