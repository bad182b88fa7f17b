"""Runs a converted model with mlx-lm's own loader and modules: no batching, no sampling.

Importing mlx_lm lowers this process's limit of open files for good; that is prevented here.
"""

from __future__ import annotations

import json
import pathlib
import resource
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from converters.artifact import ARTIFACT_FILE, MLX_CONFIG_FILE, read_artifact

with mock.patch.object(resource, "setrlimit"):
    from mlx_lm.models import cache
    from mlx_lm.utils import load_model

Row = npt.NDArray[np.float64]
CHUNK = 32


class MlxLoop:
    """One loaded artifact. `exact` computes in fp32, so that only the weights' rounding remains."""

    def __init__(self, folder: pathlib.Path, *, exact: bool = True, context: int = 512) -> None:
        self.model: Any
        self.model, self.config = load_model(folder, model_config=_short_class(folder, context))
        if exact:
            self.model.set_dtype(mx.float32)

    @property
    def vocabulary(self) -> int:
        return self.config["vocab_size"]

    def logprobs(self, ids: list[int], decoded: int = 0) -> Row:
        """f64 [vocabulary], for the id after `ids`, prefilled in chunks but for the last `decoded`."""
        caches = cache.make_prompt_cache(self.model)
        whole = len(ids) - decoded
        logits = self._run(ids[:whole], caches)
        for one in ids[whole:]:
            logits = self._run([one], caches)
        return _normalised(logits)

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


def _short_class(folder: pathlib.Path, context: int) -> dict[str, Any]:
    """The longrope class of a worker with this context, where it is not the one that modules read."""
    if not (folder / ARTIFACT_FILE).exists():
        return {}
    table = read_artifact(folder).rope.get("global")
    if table is None or context > table.original_context_length:
        return {}
    scaling = json.loads((folder / MLX_CONFIG_FILE).read_bytes())["rope_scaling"]
    return {"rope_scaling": scaling | {"long_factor": scaling["short_factor"]}}


def _normalised(logits: mx.array) -> Row:
    wide = logits.astype(mx.float32)
    return np.array(wide - mx.logsumexp(wide), np.float64)
