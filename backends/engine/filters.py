"""What of a distribution is left to draw from: the filters of the sampler, and who is likeliest.

Pure; candidates always come likeliest first, equals by id, and every filter keeps at least one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.types import EngineError, Sampling

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ids = NDArray[np.int64]
Bits = NDArray[np.uint8]

MIROSTAT_FIT_IDS = 100


class Candidates(NamedTuple):
    """`ids` int64 [n] and `logits` float32 [n], likeliest first, equals by id."""

    ids: Ids
    logits: Floats


def is_allowed(allowed: Bits, ids: Ids) -> NDArray[np.bool_]:
    """For each id, its bit of the packed `allowed` (lowest bit first)."""
    return (allowed[ids >> 3] >> (ids & 7).astype(np.uint8) & 1).astype(np.bool_)


def allowed_ids(allowed: Bits | None, vocabulary: int) -> Ids | None:
    """The ids below `vocabulary` whose bit is set, in order. Raises EngineError for none at all."""
    if allowed is None:
        return None
    ids = np.flatnonzero(np.unpackbits(allowed, bitorder="little")[:vocabulary])
    if not ids.size:
        raise EngineError("internal", "the constraint allows no id")
    return ids


def likeliest(logits: Floats, count: int, among: Ids | None = None) -> Candidates:
    """The `count` largest of float32 [vocabulary] (<= 0: all), likeliest first, equals by id.

    `among` leaves only these ids, which ascend.
    """
    if among is not None:
        chosen = likeliest(logits[among], count)
        return Candidates(among[chosen.ids], chosen.logits)
    ids = np.arange(logits.size)
    if 0 < count < logits.size:
        floor = np.partition(logits, logits.size - count)[logits.size - count]
        ids = np.flatnonzero(logits >= floor)
    order = np.argsort(-logits[ids], kind="stable")
    ids = ids[order][: count if count > 0 else None]
    return Candidates(ids, logits[ids])


def softmax(logits: Floats, temperature: float = 1.0) -> Doubles:
    """Float64 [n] that sums to 1, of logits ordered likeliest first."""
    exponentials = np.exp((logits.astype(np.float64) - float(logits[0])) / temperature)
    return exponentials / exponentials.sum()


def surprise_of(probabilities: Doubles) -> Doubles:
    """In bits."""
    return -np.log2(np.maximum(probabilities, np.finfo(np.float64).tiny))


def filtered(candidates: Candidates, sampling: Sampling) -> Candidates:
    """What tfs_z, typical_p, top_p and min_p leave; at least one."""
    if sampling.tfs_z < 1:
        candidates = tail_free(candidates, sampling.tfs_z)
    if sampling.typical_p < 1:
        candidates = typical(candidates, sampling.typical_p)
    if sampling.top_p < 1:
        kept = kept_by_top_p(np.cumsum(softmax(candidates.logits)), sampling.top_p)
        candidates = Candidates(candidates.ids[:kept], candidates.logits[:kept])
    if sampling.min_p > 0:
        kept = kept_by_min_p(candidates.logits, sampling.min_p)
        candidates = Candidates(candidates.ids[:kept], candidates.logits[:kept])
    return candidates


def kept_by_top_p(cumulative: Doubles, top_p: float) -> int:
    """The fewest leading candidates that hold at least `top_p` together."""
    return min(int(np.searchsorted(cumulative, top_p, side="left")) + 1, cumulative.size)


def kept_by_min_p(logits: Floats, min_p: float) -> int:
    """The leading candidates at least `min_p` times as likely as the first."""
    floor = float(logits[0]) + math.log(min(min_p, 1.0))
    return max(1, int((logits.astype(np.float64) >= floor).sum()))


def tail_free(candidates: Candidates, z: float) -> Candidates:
    """Cuts where the second derivative of the sorted probabilities has spent `z` of its sum."""
    if candidates.ids.size <= 2:
        return candidates
    curvature = np.abs(np.diff(softmax(candidates.logits), n=2))
    total = float(curvature.sum())
    if total > 0:
        curvature = curvature / total
    beyond = np.flatnonzero(np.cumsum(curvature) > z)
    kept = max(1, int(beyond[0])) if beyond.size else candidates.ids.size
    return Candidates(candidates.ids[:kept], candidates.logits[:kept])


def typical(candidates: Candidates, mass: float) -> Candidates:
    """Meister et al., arXiv 2202.00666: the ids whose surprise is nearest to the entropy."""
    probabilities = softmax(candidates.logits)
    surprise = surprise_of(probabilities)
    entropy = float((probabilities * surprise).sum())
    nearest = np.argsort(np.abs(surprise - entropy), kind="stable")
    beyond = np.flatnonzero(np.cumsum(probabilities[nearest]) > mass)
    kept = np.sort(nearest[: int(beyond[0]) + 1] if beyond.size else nearest)
    return Candidates(candidates.ids[kept], candidates.logits[kept])


def mirostat_k(scaled: Doubles, mu: float, vocabulary: int) -> int:
    """How many candidates a Zipf fit of the likeliest allows for a surprise of `mu` bits."""
    fitted = scaled[:MIROSTAT_FIT_IDS]
    if fitted.size < 2:
        return 1
    steps = np.arange(1, fitted.size, dtype=np.float64)
    logs = np.log((steps + 1) / steps)
    exponent = float((logs * -np.diff(fitted)).sum() / (logs * logs).sum())
    epsilon = exponent - 1
    if exponent <= 0 or abs(epsilon) < 1e-9:
        return scaled.size
    power = mu * math.log(2) + math.log(epsilon / (1 - vocabulary**-epsilon))
    return max(1, int(math.exp(min(power / exponent, math.log(scaled.size)))))
