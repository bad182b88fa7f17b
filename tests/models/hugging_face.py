"""Small random models as Hugging Face folders: safetensors, config.json, tokenizer.json by hand.

`make_folder` writes one of any family in `FAMILIES`; the same arguments give the same bytes. The
names and shapes are those of the original implementations, told here once more and on purpose not
taken from the importer.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.models.hugging_face_families import FAMILIES, Json, Weight

Array = npt.NDArray[np.float32]
Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def encoded(array: Array, dtype: str) -> bytes:
    if dtype == "F32":
        return array.astype("<f4").tobytes()
    if dtype == "F16":
        return array.astype("<f2").tobytes()
    bits = array.astype("<f4").view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def safetensors_bytes(tensors: Tensors) -> bytes:
    """`tensors`: name → (type, shape, bytes)."""
    header: Json = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        span = [offset, offset + len(data)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": span}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(data for _, _, data in tensors.values())
    return len(text).to_bytes(8, "little") + text + body


def drawn(weight: Weight) -> Array:
    name, shape, std, mean = weight
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    return (mean + std * generator.standard_normal(shape)).astype(np.float32)


def make_folder(
    folder: Path, family: str, *, dtype: str = "F32", shards: int = 1, **config: Any
) -> Path:
    """Writes the folder; `config` replaces keys of its config.json."""
    spec = FAMILIES[family]
    folder.mkdir(parents=True, exist_ok=True)
    settings = spec.config | config
    tensors = {
        weight[0]: (dtype, weight[1], encoded(drawn(weight), dtype))
        for weight in spec.weights(settings)
    }
    write_weights(folder, tensors, shards)
    files = {
        "config.json": settings,
        "tokenizer.json": spec.tokenizer(),
        "tokenizer_config.json": spec.tokenizer_config,
    } | spec.more_files
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, ensure_ascii=False))
    return folder


def write_weights(folder: Path, tensors: Tensors, shards: int = 1) -> None:
    if shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        return
    placed: dict[str, str] = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[shard::shards])
        (folder / name).write_bytes(safetensors_bytes(part))
        placed |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
