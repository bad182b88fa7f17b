"""Prints architecture × target: `python -m tests.parity.table [--types Q4_K_M] [architecture …]`.

Decoders: the worst difference among llama.cpp's best five log-probabilities after a prompt of 48 ids,
prefilled in chunks, and again with its end decoded id by id. Encoders: one less the cosine, of a lone score
the difference. For types
other than F32 the reference is llama.cpp on the dequantised twin of the file: what the file means.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
from collections.abc import Callable

import mlx.core as mx
import numpy as np

from backends.mlx.encoders import load_encoder
from converters.errors import ConversionError
from tests.models.random_architectures import ARCHITECTURES, ENCODERS
from tests.models.reference import LlamaCpp
from tests.parity.converted import converted_file
from tests.parity.dequantised import dequantised
from tests.parity.mlx_loop import MlxLoop
from tests.parity.onnx_loop import OnnxLoop
from tests.parity.test_architectures import (
    CONTEXT,
    in_pieces,
    made,
    prompt_ids,
    worst_of_top,
)
from tests.parity.test_architectures_mlx import METADATA
from tests.parity.test_encoders import EncoderLoop, cosine, texts_of
from tests.parity.test_encoders_mlx import made as made_encoder

TARGETS = ("onnx-cpu", "mlx")
VOCABULARY = 700
# One target on one file, given the reference's answers → the worst difference.
Measure = Callable[[pathlib.Path], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", default="F32", help="GGML type or mix of all matrices")
    parser.add_argument("architectures", nargs="*", default=sorted(ARCHITECTURES))
    arguments = parser.parse_args()
    print(f"| {arguments.types} | " + " | ".join(TARGETS) + " |")
    print("|---" * (len(TARGETS) + 1) + "|")
    for architecture in arguments.architectures:
        with tempfile.TemporaryDirectory() as folder:
            cells = row(pathlib.Path(folder), architecture, arguments.types)
        print(f"| {architecture} | " + " | ".join(cells) + " |", flush=True)


def row(folder: pathlib.Path, architecture: str, types: str) -> list[str]:
    is_encoder = architecture in ENCODERS
    if is_encoder:
        path = made_encoder(folder, architecture, types)
    else:
        path = made(folder, architecture, types, METADATA.get(architecture))
    meant = path if types == "F32" else dequantised(path, folder / "twin.gguf")
    measures = (vector_measures if is_encoder else logprob_measures)(meant)
    return [cell(path, target, measures[target]) for target in TARGETS]


def cell(path: pathlib.Path, target: str, measure: Measure) -> str:
    try:
        return f"{measure(converted_file(path, target=target)):.1e}"
    except ConversionError as error:
        return f"refused: {error}"


def logprob_measures(meant: pathlib.Path) -> dict[str, Measure]:
    ids = prompt_ids()
    with LlamaCpp(meant, context=CONTEXT) as model:
        expected = model.logprobs(ids, VOCABULARY)

    def onnx(folder: pathlib.Path) -> float:
        found = OnnxLoop(folder, CONTEXT).logprobs(ids), in_pieces(folder, ids)
        return max(worst_of_top(each, expected) for each in found)

    def mlx(folder: pathlib.Path) -> float:
        loop = MlxLoop(folder, context=CONTEXT)
        return max(worst_of_top(loop.logprobs(ids, decoded), expected) for decoded in (0, 8))

    return {"onnx-cpu": onnx, "mlx": mlx}


def vector_measures(meant: pathlib.Path) -> dict[str, Measure]:
    texts = texts_of(VOCABULARY)
    with LlamaCpp(meant, context=CONTEXT, is_encoder=True) as model:
        expected = [model.embed(ids) for ids in texts]

    def farthest(vectors: list[np.ndarray]) -> float:
        pairs = zip(vectors, expected, strict=True)
        return max(distance(one.astype(np.float64), other[: len(one)]) for one, other in pairs)

    def onnx(folder: pathlib.Path) -> float:
        return farthest(list(EncoderLoop(folder).run(texts)))

    def mlx(folder: pathlib.Path) -> float:
        batch = load_encoder(folder, mx.float32).embed([tuple(ids) for ids in texts])
        return farthest([np.frombuffer(vector, "<f4") for vector in batch])

    return {"onnx-cpu": onnx, "mlx": mlx}


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """A lone score has no direction: there it is the difference."""
    return 1 - cosine(found, expected) if len(found) > 1 else float(np.abs(found - expected)[0])


if __name__ == "__main__":
    main()
