"""LoRA adapters with random numbers for a GGUF, as llama.cpp's own converter writes them."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter
from gguf.constants import GGMLQuantizationType

from converters.gguf import TensorInfo, read_header
from tests.models.block_quantiser import quantise

# What fine-tuners adapt by default: everything that multiplies in a block.
ALL_LINEARS = r"attn_(q|k|v|qkv|output)|ffn_(gate|up|down)"
Matrices = dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]


def random_matrices(
    base: Path, *, targets: str = ALL_LINEARS, rank: int = 8, std: float = 0.3, seed: int = 7
) -> Matrices:
    """(A [rank, columns], B [rows, rank]) by weight; `std` is about that of the added product."""
    generator = np.random.default_rng(seed)
    matrices: Matrices = {}
    for tensor in adapted(base, targets):
        rows, columns = tensor.shape
        a = generator.standard_normal((rank, columns)).astype(np.float32) / np.sqrt(columns)
        b = generator.standard_normal((rows, rank)).astype(np.float32) * std / np.sqrt(rank)
        matrices[tensor.name] = a.astype(np.float32), b.astype(np.float32)
    return matrices


def adapted(base: Path, targets: str) -> Iterable[TensorInfo]:
    """The base's matrices whose role is one of `targets`, or whose whole stem matches."""
    pattern = re.compile(rf"(blk\.\d+\.)?({targets})\.weight")
    return [t for t in read_header(base).tensors if pattern.fullmatch(t.name) and len(t.shape) == 2]


def make_adapter(
    path: Path,
    base: Path,
    matrices: Matrices | None = None,
    *,
    alpha: float = 16.0,
    architecture: str | None = None,
    kind: str = "lora",
    types: str = "F32",
    extra: dict[str, npt.NDArray[np.float32]] | None = None,
) -> Path:
    """Writes the adapter; `extra` adds tensors by their whole names."""
    writer = GGUFWriter(path, architecture or read_header(base).architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", kind)
    writer.add_float32("adapter.lora.alpha", alpha)
    matrices = random_matrices(base) if matrices is None else matrices
    named = {
        f"{name}.{part}": array
        for name, pair in matrices.items()
        for part, array in zip(("lora_a", "lora_b"), pair, strict=True)
    }
    for name, array in (named | (extra or {})).items():
        # B's rows are as short as the rank, too short for blocks.
        type_name = types if name.endswith("_a") or types in ("F16", "BF16") else "F32"
        if type_name == "F32":
            writer.add_tensor(name, array)
        else:
            data = quantise(array, type_name).reshape(len(array), -1)
            writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[type_name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
