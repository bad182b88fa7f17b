"""GGUF files with random weights, which llama.cpp loads and which behave like a model's.

`make_gguf` writes one file of any architecture in `random_architectures`, block type or mix in
`block_quantiser`, and tokenizer in `vocabularies`, from a few hundred kilobytes to billions of
weights: tensors are written one slice at a time, so memory stays bounded. The same arguments give
the same bytes. It never promises that the text a model generates means anything.
"""

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter
from gguf.constants import GGMLQuantizationType

from tests.models.block_quantiser import block_bytes, block_size, plan_block_type, quantise
from tests.models.random_architectures import (
    ARCHITECTURES,
    Architecture,
    Shape,
    Value,
    Weight,
    common_metadata,
)
from tests.models.vocabularies import build_vocabulary

# Tensors beyond this many weights are drawn from a pool of blocks quantised once,
POOL_WEIGHTS = 1 << 20
# unless their rows have so few blocks that drawn rows could be equal.
POOL_ROW_BLOCKS = 4
SLICE_BYTES = 8 << 20


class Size(TypedDict):
    """Arguments of `make_gguf` that together make a model of a known size."""

    blocks: int
    embedding: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int


SIZES: dict[str, Size] = {
    "0.1M": Size(blocks=1, embedding=64, heads=2, kv_heads=1, feed_forward=128, vocabulary=600),
    "1.1B": Size(
        blocks=22, embedding=2048, heads=32, kv_heads=4, feed_forward=5632, vocabulary=32000
    ),
    "3B": Size(
        blocks=28, embedding=3072, heads=24, kv_heads=8, feed_forward=8192, vocabulary=64000
    ),
}


def make_gguf(
    path: str | Path,
    *,
    architecture: str = "llama",
    types: str = "Q4_K",
    tokenizer: str = "llama",
    pre: str = "llama-bpe",
    blocks: int = 2,
    embedding: int = 256,
    heads: int = 4,
    kv_heads: int = 2,
    feed_forward: int = 512,
    context: int = 2048,
    vocabulary: int = 700,
    head_size: int | None = None,
    is_tied: bool | None = None,
    seed: int = 0,
    chat_template: str | None = None,
    metadata: dict[str, Value] | None = None,
    control: tuple[str, ...] = (),
    merges: tuple[str, ...] = (),
) -> Path:
    """Write a random model and return its path; `**SIZES["1.1B"]` gives a benchmark's size.

    `types` is a GGML type, used for every matrix, or a mix such as "Q4_K_M"; vectors are F32.
    `metadata` adds or replaces keys, given whole. `chat_template` None takes the vocabulary's,
    "" none. `control` are further control tokens, `merges` further merges ("left right"). Raises
    KeyError for unknown architectures and types.
    """
    spec = ARCHITECTURES[architecture]
    words = build_vocabulary(tokenizer, pre, vocabulary, control, merges)
    shape = Shape(
        blocks=blocks,
        embedding=embedding,
        heads=heads,
        kv_heads=kv_heads,
        feed_forward=feed_forward,
        context=context,
        vocabulary=len(words.tokens),
        head_size=head_size or spec.head_size or embedding // heads,
        is_tied=spec.is_tied if is_tied is None else is_tied,
    )
    writer = GGUFWriter(Path(path), spec.name)
    writer.add_name(f"random {architecture} {types}")
    _add_metadata(writer, spec, shape, metadata or {})
    words.write(writer, chat_template)
    write_weights(writer, list(spec.weights(shape)), types, blocks, seed)
    return Path(path)


def _add_metadata(
    writer: GGUFWriter, spec: Architecture, shape: Shape, extra: dict[str, Value]
) -> None:
    own = common_metadata(shape) | spec.metadata(shape)
    prefixed = {f"{spec.name}.{key}": value for key, value in own.items()}
    write_metadata(writer, prefixed | spec.whole_metadata | extra)


def write_metadata(writer: GGUFWriter, metadata: dict[str, Value]) -> None:
    for key, value in metadata.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value)


def write_weights(
    writer: GGUFWriter, weights: list[Weight], types: str, blocks: int, seed: int
) -> None:
    """Header, then each tensor's slices; the writer's file is used directly to stream them."""
    names = {weight.name: _type_name(weight, types, blocks) for weight in weights}
    for weight in weights:
        type_name = names[weight.name]
        nbytes = math.prod(weight.shape) // block_size(type_name) * block_bytes(type_name)
        writer.add_tensor_info(
            weight.name,
            weight.shape,
            np.dtype(np.float32),
            nbytes,
            GGMLQuantizationType[type_name],
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    file, pools = writer.fout[0], _Pools(seed)
    for weight in weights:
        writer.write_padding(file, file.tell())
        for piece in pools.slices(weight, names[weight.name]):
            file.write(piece.tobytes())
    writer.write_padding(file, file.tell())
    writer.close()


def _type_name(weight: Weight, types: str, blocks: int) -> str:
    if not weight.is_matrix:
        return "F32"
    if weight.is_never_coded and types not in ("F32", "BF16"):
        return "F16"
    return plan_block_type(weight.name, weight.shape[-1], types, blocks)


def _quantised(
    generator: np.random.Generator, weight: Weight, type_name: str, rows: int
) -> Iterator[npt.NDArray[np.uint8]]:
    columns = weight.shape[-1]
    step = max(1, POOL_WEIGHTS // columns)
    for start in range(0, rows, step):
        drawn = generator.standard_normal((min(step, rows - start), columns))
        yield quantise((weight.mean + weight.std * drawn).astype(np.float32), type_name)


class _Pools:
    """The bytes of each tensor: quantised outright, or drawn from a pool of quantised blocks.

    A draw keeps every row different (repeated rows would tie logits) at the speed of a copy.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._pools: dict[tuple[str, float], npt.NDArray[np.uint8]] = {}

    def slices(self, weight: Weight, type_name: str) -> Iterator[npt.NDArray[np.uint8]]:
        generator = np.random.default_rng([self._seed, zlib.crc32(weight.name.encode())])
        count, columns = math.prod(weight.shape), weight.shape[-1]
        if weight.values is not None:
            yield np.asarray(weight.values, np.float32).view(np.uint8)
        elif count <= POOL_WEIGHTS or columns < POOL_ROW_BLOCKS * block_size(type_name):
            yield from _quantised(generator, weight, type_name, count // columns)
        else:
            yield from self._drawn(generator, weight.std, type_name, count)

    def _drawn(
        self, generator: np.random.Generator, std: float, type_name: str, count: int
    ) -> Iterator[npt.NDArray[np.uint8]]:
        pool = self._pool(std, type_name)
        remaining = count // block_size(type_name)
        step = max(1, SLICE_BYTES // pool.shape[1])
        while remaining > 0:
            taken = min(step, remaining)
            yield pool[generator.integers(0, len(pool), taken)]
            remaining -= taken

    def _pool(self, std: float, type_name: str) -> npt.NDArray[np.uint8]:
        if (type_name, std) not in self._pools:
            generator = np.random.default_rng(self._seed)
            rows = generator.standard_normal((POOL_WEIGHTS // 4096, 4096)) * std
            packed = quantise(rows.astype(np.float32), type_name)
            self._pools[type_name, std] = packed.reshape(-1, block_bytes(type_name))
        return self._pools[type_name, std]
