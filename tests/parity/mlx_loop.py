"""Runs a converted model with mlx-lm's own loader and modules: no batching, no sampling.

Importing mlx_lm lowers this process's limit of open files for good; that is prevented here.
"""

from __future__ import annotations

import pathlib
import resource
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np
import numpy.typing as npt

with mock.patch.object(resource, "setrlimit"):
    from mlx_lm.models import cache
    from mlx_lm.utils import load_model

Row = npt.NDArray[np.float64]
CHUNK = 32


class MlxLoop:
    """One loaded artifact. `exact` computes in fp32, so that only the weights' rounding remains."""

    def __init__(self, folder: pathlib.Path, *, exact: bool = True) -> None:
        self.model: Any
        self.model, self.config = load_model(folder)
        if exact:
            self.model.set_dtype(mx.float32)

    @property
    def vocabulary(self) -> int:
        return self.config["vocab_size"]

    def logprobs(self, ids: list[int]) -> Row:
        """f64 [vocabulary], for the id after `ids`, prefilled in two chunks."""
        return _normalised(self._run(ids, cache.make_prompt_cache(self.model)))

    def greedy(self, ids: list[int], count: int) -> list[int]:
        caches, chosen = cache.make_prompt_cache(self.model), []
        for _ in range(count):
            chosen.append(int(mx.argmax(self._run(ids, caches))))
            ids = chosen[-1:]
        return chosen

    def _run(self, ids: list[int], caches: list[Any]) -> mx.array:
        """Logits [vocabulary] after the last id."""
        logits = mx.zeros(0)
        for start in range(0, len(ids), CHUNK):
            logits = self.model(mx.array([ids[start : start + CHUNK]]), cache=caches)[0, -1]
        return logits


def _normalised(logits: mx.array) -> Row:
    wide = logits.astype(mx.float32)
    return np.array(wide - mx.logsumexp(wide), np.float64)
