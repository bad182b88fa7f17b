"""A folder in MLX's own format: what `config.json` says of it becomes keys, its arrays go as they are.

Told by `quantization` with a group size, as mlx-lm writes it. The arrays are mlx-lm's to understand, so
only that it has the model, and that the arrays can be said in a GGUF, is looked at here.
"""

from __future__ import annotations

from typing import Any

from converters.errors import MalformedFile, Unsupported
from converters.gguf_types import ValueType
from converters.gguf_writer import TypedValue
from converters.imports.config import Config
from converters.imports.recipe import Keys, Placed, Recipe
from converters.imports.safetensors import StoredTensor
from converters.targets.mlx.native import (
    ARCHITECTURE,
    CONFIG_KEY,
    ITEMS,
    PARAMETERS_KEY,
    require_model_type,
)

MAX_CONFIG_CHARACTERS = 16 << 20
_GGUF_TYPES = {item: name for name, item in ITEMS.items()}
_TABLES = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embeddings.weight")


def is_mlx_format(values: dict[str, Any]) -> bool:
    found = values.get("quantization")
    return isinstance(found, dict) and "group_size" in found and "quant_method" not in found


def mlx_recipe(
    values: dict[str, Any], config_text: str, tensors: dict[str, StoredTensor]
) -> Recipe:
    """Raises Unsupported, MalformedFile."""
    if len(config_text) > MAX_CONFIG_CHARACTERS:
        raise MalformedFile(f"config.json has {len(config_text)} characters")
    if not any(name.endswith(".scales") for name in tensors):
        raise MalformedFile(
            "config.json says that the weights are quantised, and no tensor has scales"
        )
    config = Config(values)
    model_type = require_model_type(values)
    text = config.part("text_config") if config.has("text_config") else config
    keys = Keys(ARCHITECTURE)
    heads = text.count("num_attention_heads")
    if not heads:
        raise MalformedFile("config.json: num_attention_heads is 0")
    keys.count("block_count", text.count(text.first("num_hidden_layers", "n_layers")))
    keys.count("embedding_length", text.count(text.first("hidden_size", "dim")))
    keys.count("attention.head_count", heads)
    keys.count("attention.head_count_kv", text.count("num_key_value_heads", heads))
    keys.count("attention.key_length", text.count("head_dim", text.count("hidden_size") // heads))
    keys.count("context_length", text.count("max_position_embeddings", 4096))
    keys.count("vocab_size", table_rows(tensors))
    keys.text("model_type", model_type)
    keys.text("quantization", _quantization(config.part("quantization")))
    keys.found[CONFIG_KEY] = TypedValue(ValueType.STRING, config_text)
    form = values["quantization"]
    parameters = sum(_parameters(tensor, tensors, form) for tensor in tensors.values())
    keys.found[PARAMETERS_KEY] = TypedValue(ValueType.UINT64, parameters)
    placed = tuple(_placed(tensor) for tensor in tensors.values())
    return Recipe(architecture=ARCHITECTURE, keys=keys.found, tensors=placed)


def _quantization(quantization: Config) -> str:
    """The usual form, as people call it; single modules may have another."""
    bits = quantization.count("bits", 4)
    mode = quantization.text("mode", "affine")
    return f"MLX {bits}-bit" if mode == "affine" else f"MLX {mode[:20]}"


def table_rows(tensors: dict[str, StoredTensor]) -> int:
    for name, tensor in tensors.items():
        if name.endswith(_TABLES) and len(tensor.shape) == 2:
            return tensor.shape[0]
    raise MalformedFile("the folder holds no table of embeddings")


def _parameters(
    tensor: StoredTensor, tensors: dict[str, StoredTensor], quantization: dict[str, Any]
) -> int:
    """Weights that a tensor stands for: codes are counted by their scales, which are not weights."""
    stem, _, role = tensor.name.rpartition(".")
    if role in ("scales", "biases") and f"{stem}.weight" in tensors:
        return 0
    scales = tensors.get(f"{stem}.scales")
    if tensor.dtype != "U32" or scales is None or not scales.elements:
        return tensor.elements
    return scales.elements * _group(stem, quantization)


def _group(stem: str, quantization: dict[str, Any]) -> int:
    """Weights that share a scale, by the module's own entry or the default."""
    own = quantization.get(stem)
    found = (own if isinstance(own, dict) else quantization).get("group_size")
    return found if isinstance(found, int) and 0 < found <= 1024 else 1


def _placed(tensor: StoredTensor) -> Placed:
    if tensor.dtype not in _GGUF_TYPES:
        raise Unsupported(f"tensor {tensor.name!r}: {tensor.dtype} is not carried to MLX")
    if not tensor.elements or not tensor.shape:
        raise Unsupported(f"tensor {tensor.name!r} has the shape {list(tensor.shape)}")
    return Placed(
        name=tensor.name,
        shape=tensor.shape,
        type_name=_GGUF_TYPES[tensor.dtype],
        sources=(tensor,),
        is_as_it_is=True,
    )
