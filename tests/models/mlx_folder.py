"""A small random model in MLX's own format: quantised and saved by MLX, as mlx-lm writes folders."""

from __future__ import annotations

import json
import pathlib
import resource
import shutil
from typing import Any
from unittest import mock

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from tests.models.hugging_face import make_folder

with mock.patch.object(resource, "setrlimit"):
    from mlx_lm.utils import load_model


def make_mlx_folder(folder: pathlib.Path, family: str, **quantization: Any) -> pathlib.Path:
    """From a dense folder of `family`, bf16; `quantization` are those of `nn.quantize`. Two shards."""
    dense = make_folder(folder.with_name(f"{folder.name}-dense"), family, dtype="BF16")
    model, config = load_model(dense)
    model.set_dtype(mx.bfloat16)
    form: dict[str, Any] = {"group_size": 64, "bits": 4} | quantization
    nn.quantize(model, **form)
    arrays = dict(tree_flatten(model.parameters()))
    folder.mkdir()
    names = sorted(arrays)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    placed = {}
    for number, half in enumerate(halves, 1):
        file = f"model-{number:05}-of-00002.safetensors"
        mx.save_safetensors(
            str(folder / file), {name: arrays[name] for name in half}, metadata={"format": "mlx"}
        )
        placed |= dict.fromkeys(half, file)
    index = {"metadata": {"total_size": 0}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    written = {**config, "quantization": form, "quantization_config": form}
    (folder / "config.json").write_text(json.dumps(written))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(dense / name, folder / name)
    return folder
