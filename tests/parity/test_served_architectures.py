"""Every architecture through both engines: two requests side by side answer as llama.cpp does alone.

What the graphs ask of the engine beyond keys and values is bound here: tables of their own for
windowed blocks, long rotation factors, positions, blocks without heads, states. On MLX, rows share
runs as on a GPU: every kind of cache that a model of mlx-lm has becomes a batch and comes apart again.
"""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from backends.engine.contract import Engine
from backends.mlx.loading import load_engine
from backends.onnx import backend
from backends.types import (
    Finished,
    GenerateRequest,
    Load,
    Sampled,
    Sampling,
)
from tests.models.random_architectures import DECODERS, MIXTURES, Value
from tests.models.random_gguf import make_gguf
from tests.models.reference import LlamaCpp
from tests.parity.converted import converted_file
from tests.parity.test_architectures import BLOCKS
from tests.parity.test_architectures_mlx import REFUSED

pytestmark = pytest.mark.parity

CONTEXT = 512
COUNT = 8
# llama.cpp knows the lite model by 26 blocks, which the graphs' tests have.
LEFT_OUT = {"deepseek2-lite"}
# Its module on MLX sees everything: the artifact's context ends where the window does.
METADATA: dict[str, dict[str, Value]] = {"gemma2": {"gemma2.attention.sliding_window": 128}}


def loaded(
    folder: pathlib.Path,
    target: str,
    *,
    projector: pathlib.Path | None = None,
    context: int = CONTEXT,
) -> Engine:
    order = Load(
        request_id="l",
        backend="onnx" if target == "onnx-cpu" else "mlx",
        artifact=str(folder),
        rows=2,
        context_length=context,
        threads=1,
        projector=str(projector or ""),
    )
    return load_engine(order, has_batches=True) if target == "mlx" else backend.load(order)


def answers(engine: Engine, prompts: dict[str, list[int]]) -> dict[str, list[int]]:
    for name, prompt in prompts.items():
        engine.add(
            GenerateRequest(
                request_id=name,
                prompt_ids=tuple(prompt),
                max_tokens=COUNT,
                sampling=Sampling(temperature=0.0),
            )
        )
    found: dict[str, list[int]] = {name: [] for name in prompts}
    while engine.has_work():
        for event in engine.step():
            if isinstance(event, Sampled):
                found[event.request_id].append(event.token_id)
            elif isinstance(event, Finished):
                assert event.request_id in found
    return found


@pytest.mark.parametrize("architecture", sorted({*DECODERS, *MIXTURES} - LEFT_OUT))
@pytest.mark.parametrize("target", ["mlx", "onnx-cpu"])
def test_answers_are_those_of_llama_cpp(tmp_path: pathlib.Path, architecture: str, target: str):
    if target == "mlx" and architecture in REFUSED:
        pytest.skip(REFUSED[architecture])
    path = make_gguf(
        tmp_path / "model.gguf",
        architecture=architecture,
        types="F32",
        blocks=BLOCKS.get(architecture, 2),
        context=CONTEXT,
        metadata=METADATA.get(architecture),
    )
    generator = np.random.default_rng(7)
    prompts = {
        name: [int(one) for one in generator.integers(300, 690, count)]
        for name, count in (("long", 70), ("short", 33))
    }
    engine = loaded(converted_file(path, target=target), target)
    with LlamaCpp(path, context=CONTEXT) as model:
        expected = {name: model.greedy(prompt, COUNT) for name, prompt in prompts.items()}
    found = answers(engine, prompts)
    for name, ids in expected.items():
        assert found[name][: len(ids)] == ids
    # The same again, from rows that others have used and prefixes that are kept.
    assert answers(engine, prompts) == found
    engine.close()
