"""Prints block type × target: `python -m tests.parity.type_table [TYPE …]`.

What became of the matrices of a random model in that type, quantised by llama.cpp: the class, how they are
written, and the largest and the root mean square error beside the weights' own root mean square, in percent.
Experts are matrices of their own on ONNX Runtime; on MLX they are written as all others.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile

import numpy as np

from converters.artifact import TensorRecord, read_artifact
from converters.gguf import read_header
from converters.tensor_reader import TensorReader
from tests.bench.conversion import COMMON, OTHERS
from tests.models.random_gguf import make_gguf
from tests.parity.converted import converted_file

COLUMNS = (
    ("llama", "onnx-cpu"), ("qwen3moe", "onnx-cpu"), ("qwen3moe", "onnx-cuda"), ("llama", "mlx"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", default=[*COMMON, *OTHERS])
    arguments = parser.parse_args()
    print("| type | ONNX | ONNX, experts | CUDA, experts | MLX |\n|---|---|---|---|---|")
    for types in arguments.types:
        print(
            f"| {types} | " + " | ".join(cell(types, *each) for each in COLUMNS) + " |", flush=True
        )


def cell(types: str, architecture: str, target: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.gguf"
        make_gguf(path, architecture=architecture, types=types, embedding=256, feed_forward=512)
        found = read_artifact(converted_file(path, target=target))
        is_expert = architecture == "qwen3moe"
        records = [
            record
            for record in found.tensors
            if record.source_type == types and len(record.shape) == 2 + is_expert
        ]
        return described(records, weights_rms(path, records[0].name))


def weights_rms(path: pathlib.Path, name: str) -> float:
    with path.open("rb") as file:
        tensor = next(each for each in read_header(file).tensors if each.name == name)
        weights = TensorReader(file).floats(tensor, 0, tensor.elements)
    return float(np.sqrt(np.square(weights, dtype=np.float64).mean()))


def described(records: list[TensorRecord], scale: float) -> str:
    forms = ", ".join(sorted({f"{record.exactness}: {record.form}" for record in records}))
    largest = max(record.max_error for record in records) / scale
    if not largest:
        return forms
    return f"{forms}; {largest:.2%}, {max(record.rms_error for record in records) / scale:.3%}"


if __name__ == "__main__":
    main()
