"""The engines beside each other and llama.cpp: `python -m tests.bench.parity --types F32 Q4_K_M`.

One line for each architecture and mix: how many ids of a greedy answer are the same from the start, and
the largest difference among the first engine's five likeliest log-probabilities, over the positions
whose ids before are the same. MLX runs as on a GPU: two prompts share its runs, the second is not shown.
With codes, llama.cpp and ONNX multiply by 8-bit activations and MLX does not: "exact" is llama.cpp on
an F32 file of what the codes mean.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np

from backends.engine.contract import Engine
from backends.mlx.loading import load_engine
from backends.onnx import backend as onnx_backend
from backends.types import EngineError, GenerateRequest, Load, Sampled, Sampling
from converters.errors import Unsupported
from tests.models.random_architectures import DECODERS, MIXTURES
from tests.models.reference import LlamaCpp, Step, TokenLogprob
from tests.parity.converted import converted_file
from tests.parity.dequantised import dequantised
from tests.parity.test_architectures import CONTEXT, made, prompt_ids
from tests.parity.test_architectures_mlx import METADATA

COUNT, TOP, LISTED = 16, 5, 60
PAIRS = (
    ("MLX", "exact"),
    ("ONNX", "exact"),
    ("llama.cpp", "exact"),
    ("MLX", "llama.cpp"),
    ("ONNX", "llama.cpp"),
    ("MLX", "ONNX"),
)
TARGETS = {"MLX": "mlx", "ONNX": "onnx-cpu"}


def load(name: str, path: pathlib.Path) -> Engine:
    folder = converted_file(path, target=TARGETS[name])
    order = Load(
        request_id="l", backend=name.lower(), artifact=str(folder), rows=2, context_length=CONTEXT
    )
    return load_engine(order, has_batches=True) if name == "MLX" else onnx_backend.load(order)


def steps_of(engine: Engine, ids: Sequence[int]) -> list[Step]:
    """A greedy answer, beside another prompt of the same length."""
    for name, prompt in (("a", ids), ("b", ids[::-1])):
        engine.add(
            GenerateRequest(
                request_id=name, prompt_ids=tuple(prompt), max_tokens=COUNT, top_logprobs=LISTED,
                sampling=Sampling(temperature=0.0),
            )
        )  # fmt: skip
    found: list[Step] = []
    while engine.has_work():
        for event in engine.step():
            if isinstance(event, Sampled) and event.request_id == "a":
                top = [TokenLogprob(*one) for one in event.top]
                found.append(Step(event.token_id, top))
    engine.close()
    return found


def beside(one: list[Step], other: list[Step]) -> str:
    """ "ids the same / ids, worst of the top": as far as both go on from the same ids."""
    alike, worst = 0, 0.0
    for mine, theirs in zip(one, other, strict=False):
        known = dict(theirs.top)
        differences = [abs(each.logprob - known.get(each.id, np.inf)) for each in mine.top[:TOP]]
        worst = max(worst, *differences)
        if mine.id != theirs.id:
            break
        alike += 1
    return f"{alike:2}/{min(len(one), len(other)):2}, {worst:7.1e}"


def compare(folder: pathlib.Path, architecture: str, types: str) -> str:
    path = made(folder, architecture, types, METADATA.get(architecture))
    ids = prompt_ids()
    with LlamaCpp(path, context=CONTEXT) as model:
        answers = {"llama.cpp": model.steps(ids, COUNT, LISTED)}
    if types != "F32":
        with LlamaCpp(dequantised(path, folder / "twin.gguf"), context=CONTEXT) as model:
            answers["exact"] = model.steps(ids, COUNT, LISTED)
    cells: list[str] = []
    for name in TARGETS:
        try:
            answers[name] = steps_of(load(name, path), ids)
        except (Unsupported, EngineError) as error:
            cells.append(f"{name}: {error}")
    for one, other in PAIRS:
        if one in answers and other in answers:
            cells.append(f"{one} × {other} {beside(answers[one], answers[other])}")
    return " · ".join(cells)


def main() -> None:
    everything = sorted({*DECODERS, *MIXTURES})
    parser = argparse.ArgumentParser(prog="python -m tests.bench.parity", description=__doc__)
    parser.add_argument("--types", nargs="+", default=["F32", "Q4_K_M"])
    parser.add_argument("--architectures", nargs="+", default=everything, choices=everything)
    arguments = parser.parse_args()
    for types in arguments.types:
        for architecture in arguments.architectures:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    line = compare(pathlib.Path(folder), architecture, types)
                except (ValueError, RuntimeError, Unsupported) as error:
                    line = f"not comparable: {error}"
            print(f"{architecture:18} {types:7} {line}", flush=True)


if __name__ == "__main__":
    main()
