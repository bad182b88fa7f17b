"""Projector files whose class token llama.cpp treats as those towers were trained.

llama.cpp puts the token behind the patches and gives patch i row i of the table of places, where
training had the token in front, with row 0 (as in Hugging Face's CLIP and InternVL's own code). Of
`mlp` it then leaves out the first patch and keeps the token.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from converters.gguf import read_header
from tests.models.random_gguf import write_metadata, write_weights
from tests.models.random_vision import projector_metadata
from tests.models.random_vision_towers import TOWERS

_TABLE = "v.position_embd.weight"


def twin_for_llama_cpp(path: Path, final: Path) -> Path:
    """The file with row 0 of its places at the end: what llama.cpp needs to see what `path` says."""
    data = bytearray(path.read_bytes())
    table = next(tensor for tensor in read_header(path).tensors if tensor.name == _TABLE)
    assert table.type_name == "F32"
    extent = slice(table.offset, table.offset + table.nbytes)
    rows = np.frombuffer(bytes(data[extent]), "<f4").reshape(table.shape)
    data[extent] = np.roll(rows, -1, axis=0).tobytes()
    final.write_bytes(data)
    return final


def make_without_token(path: Path, kind: str, *, types: str = "F32") -> Path:
    """A random projector whose tower has no class token, as SigLIP's have none."""
    tower = TOWERS[kind]
    weights = [each for each in tower.weights(tower.shape) if each.name != "v.class_embd"]
    sides = (tower.shape.places, tower.shape.width)
    weights = [
        dataclasses.replace(each, shape=sides) if each.name == _TABLE else each for each in weights
    ]
    writer = GGUFWriter(path, "clip")
    write_metadata(writer, projector_metadata(tower))
    write_weights(writer, weights, types, tower.shape.blocks, 0)
    return path
