"""Every architecture on MLX with an image in its prompt: vectors that are what its first block is given.

So whatever a module multiplies embeddings by, the answer must be that to the ids, to the bit.
"""

from __future__ import annotations

import pathlib
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from backends.engine.positions import layout_of
from backends.mlx import mlx_lm_internals as internals
from backends.mlx.image_runs import run_angles
from backends.mlx.loading import build_lazily, read_config
from backends.mlx.mlx_lm_images import ImageInputs, RunImages
from backends.types import EngineError
from converters.artifact import read_artifact
from tests.models.random_architectures import DECODERS, MIXTURES
from tests.parity.converted import converted_file
from tests.parity.test_architectures import made, prompt_ids
from tests.parity.test_architectures_mlx import METADATA
from tests.parity.test_architectures_mlx import REFUSED as NOT_ON_MLX

pytestmark = pytest.mark.parity

# What blocks are given beside the stream would be looked up by an image's ids.
REFUSED = {"gemma3n"}
SERVED = sorted({*DECODERS, *MIXTURES} - NOT_ON_MLX.keys())
BEGIN, END = 9, 23


def built(folder: pathlib.Path, architecture: str) -> tuple[Any, dict[str, Any], pathlib.Path]:
    """(fp32 model, config, artifact's folder)"""
    path = made(folder, architecture, "F32", METADATA.get(architecture))
    artifact = converted_file(path, target="mlx")
    config = read_config(artifact)
    model: Any = build_lazily(artifact, config)
    model.set_dtype(mx.float32)
    return model, config, artifact


def logits(model: Any, ids: list[int]) -> mx.array:
    return model(mx.array([ids]), cache=internals.make_caches(model))[0]


def first_input(model: Any, ids: list[int]) -> mx.array:
    """[S, E]: what the first block is given."""
    given: list[mx.array] = []
    block = model.layers[0]
    kind = type(block)

    def call(self: Any, x: mx.array, *arguments: Any, **named: Any) -> Any:
        given.append(x[0])
        return kind.__call__(self, x, *arguments, **named)

    block.__class__ = type(kind.__name__, (kind,), {"__call__": call})
    logits(model, ids)
    block.__class__ = kind
    return given[0]


@pytest.mark.parametrize("architecture", sorted(set(SERVED) - REFUSED))
def test_an_image_that_looks_like_ids_is_answered_as_they_are(
    tmp_path: pathlib.Path, architecture: str
) -> None:
    model, config, _ = built(tmp_path, architecture)
    ids = prompt_ids()[:40]
    expected, stream = logits(model, ids), first_input(model, ids)
    factor = config.get("embedding_multiplier", 1.0)  # granite's is for images too
    places = mx.arange(len(ids))[:, None]
    is_image = (places >= BEGIN) & (places < END)
    given = RunImages(mx.where(is_image, stream / factor, 0.0), is_image)
    blank = [*ids[:BEGIN], *[0] * (END - BEGIN), *ids[END:]]
    inputs = ImageInputs(model, config, is_sectioned=False)
    with inputs.giving(given):
        found = logits(model, blank)
    assert np.abs(np.array(found) - np.array(expected)).max() < 1e-5
    assert np.abs(np.array(logits(model, blank)) - np.array(expected)).max() > 1e-2


@pytest.mark.parametrize("architecture", sorted(REFUSED))
def test_what_cannot_be_given_images_says_so(tmp_path: pathlib.Path, architecture: str) -> None:
    model, config, _ = built(tmp_path, architecture)
    with pytest.raises(EngineError, match="takes no images on MLX yet"):
        ImageInputs(model, config, is_sectioned=False)


SECTIONED = ("qwen2vl", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe")


@pytest.mark.parametrize("architecture", SECTIONED)
def test_angles_of_text_are_those_of_the_module(tmp_path: pathlib.Path, architecture: str) -> None:
    """Where no image lies, positions are counted as the module counts them."""
    model, config, folder = built(tmp_path, architecture)
    table = read_artifact(folder).rope["global"]
    assert table.sections
    ids = prompt_ids()[:40]
    expected = np.array(logits(model, ids))
    inputs = ImageInputs(model, config, is_sectioned=True)
    with inputs.giving(None, run_angles(table, layout_of(()), 0, len(ids))):
        found = np.array(logits(model, ids))
    assert np.abs(found - expected).max() < 5e-4
    with inputs.giving(None, run_angles(table, ((5, 4, 4),), 0, len(ids))):
        assert np.abs(np.array(logits(model, ids)) - expected).max() > 1e-2
