"""Writes `config.json` and `model.safetensors` as planned, and reads them back. Decides nothing."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

from converters.architectures.model import ModelShape
from converters.artifact import MLX_CONFIG_FILE, MLX_WEIGHTS_FILE, RopeTable, TensorRecord
from converters.output_file import new_file
from converters.parallel import RunInOrder
from converters.targets.mlx.layout import Layout
from converters.targets.mlx.models.family import decoder_config
from converters.targets.mlx.models.registry import family_of
from converters.targets.mlx.weights import WeightsWriter
from converters.tensor_reader import TensorReader

_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


def write(
    model: ModelShape,
    layout: Layout,
    rope: dict[str, RopeTable],
    reader: TensorReader,
    folder: pathlib.Path,
    run: RunInOrder,
    advance: Callable[[int], None],
) -> list[TensorRecord]:
    """Both files; gives what became of each tensor, once each."""
    config = json.dumps(_config(model, layout, rope), indent=1)
    (folder / MLX_CONFIG_FILE).write_text(config, encoding="utf-8")
    with new_file(folder / MLX_WEIGHTS_FILE) as target:
        return WeightsWriter(layout, reader, target).write(run, advance)


def _config(model: ModelShape, layout: Layout, rope: dict[str, RopeTable]) -> dict[str, object]:
    family = family_of(model)
    config = family.rope(decoder_config(model, family), model, rope)
    config["torch_dtype"] = _DTYPES[layout.number]
    if quantization := layout.quantization():
        config["quantization"] = quantization
    return config


def verify(layout: Layout, folder: pathlib.Path) -> None:
    """Raises when the weights have another size or beginning than planned."""
    path = folder / MLX_WEIGHTS_FILE
    with path.open("rb") as file:
        found = file.read(len(layout.header))
    if path.stat().st_size != layout.weights_bytes or found != layout.header:
        raise RuntimeError(f"{MLX_WEIGHTS_FILE} is not what was planned")
    json.loads((folder / MLX_CONFIG_FILE).read_bytes())
