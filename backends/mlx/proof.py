"""What a model must show when it is loaded: numbers that stay finite, batches that say the same.

The runs warm the kernels too, and show what a row of caches takes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx import nn

from backends.mlx import mlx_lm_internals as internals
from backends.mlx.key_values import RowBytes
from backends.types import EngineError

NUMBERS = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}
_PROBE_IDS = 48
# Rows for `batches_agree`, and what 16 bits may make of them.
_UNLIKE_LENGTHS = (3, 24)
MOST_DIFFERENCE = 0.1
_log = logging.getLogger(__name__)


def probe_ids(vocabulary: int) -> tuple[int, ...]:
    """Spread over the vocabulary."""
    step = max(1, vocabulary // _PROBE_IDS)
    return tuple(place * step % vocabulary for place in range(_PROBE_IDS))


def proven(
    model: nn.Module, stored: str, candidates: Sequence[str], vocabulary: int
) -> tuple[str, RowBytes]:
    """The first type of numbers that a run over some ids stays finite in. Warms the kernels too."""
    for name in candidates:
        if name != stored:
            model.set_dtype(NUMBERS[name])
        mx.eval(model.parameters())
        row_bytes, is_finite = _tried(model, vocabulary)
        if is_finite:
            if name != candidates[0]:
                _log.warning("computing in %s: %s overflows in this model", name, candidates[0])
            return name, row_bytes
    raise EngineError("load", "the model gives numbers that are not finite, in every type")


def _tried(model: nn.Module, vocabulary: int) -> tuple[RowBytes, bool]:
    """What a row takes, and whether all logits of a prompt and of one id behind it are finite."""
    caches = internals.make_caches(model)
    ids = probe_ids(vocabulary)
    first = model(mx.array([ids]), cache=caches)
    second = model(mx.array([ids[:1]]), cache=caches)
    is_finite = mx.all(mx.isfinite(first)) & mx.all(mx.isfinite(second))
    internals.evaluate(caches, is_finite)
    return RowBytes(*internals.position_bytes(caches)), bool(is_finite.item())


def batches_agree(model: nn.Module, vocabulary: int) -> bool:
    """Whether two rows of unlike length say in a batch what they say alone.

    Some modules of mlx-lm take the mask of a batch for one of heads: wrong numbers, or an error.
    """
    rows = [internals.make_caches(model) for _ in _UNLIKE_LENGTHS]
    if not internals.can_batch(rows[0]):
        return False
    alone: list[mx.array] = []
    for caches, length in zip(rows, _UNLIKE_LENGTHS, strict=True):
        model(mx.array([[place % vocabulary for place in range(1, length + 1)]]), cache=caches)
        copied = internals.prefix_of(caches, length, length)
        alone.append(model(mx.array([[length % vocabulary]]), cache=copied)[0, -1])
    ids = mx.array([[length % vocabulary] for length in _UNLIKE_LENGTHS])
    try:
        together = model(ids, cache=internals.batch_of(rows))[:, -1]
        return _relative_difference(mx.stack(alone), together) < MOST_DIFFERENCE
    except (ValueError, RuntimeError):
        return False


def _relative_difference(expected: mx.array, found: mx.array) -> float:
    """Of the root mean squares; of the row where it is largest."""
    expected, found = expected.astype(mx.float32), found.astype(mx.float32)
    distance = mx.linalg.norm(expected - found, axis=-1)
    worst: Any = mx.max(distance / mx.linalg.norm(expected, axis=-1)).item()
    return float(worst)
