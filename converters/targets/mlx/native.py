"""A model that came in MLX's own format: carried through as it is, to MLX only.

Its GGUF says `general.architecture` "mlx". The tensors are MLX's arrays under MLX's names, packed codes
(U32) as I32 and their 8-bit scales (U8) as I8, and `mlx.config` is the folder's `config.json`. Nothing is
repacked, so every tensor is exact. What the arrays mean is mlx-lm's to say, when it loads them.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import msgspec

from converters.artifact import (
    ARTIFACT_FORMAT,
    CONVERTER_VERSION,
    MLX_CONFIG_FILE,
    MLX_MODEL_TYPES,
    MLX_WEIGHTS_FILE,
    Artifact,
    TensorRecord,
    variant_folder,
)
from converters.errors import MalformedFile, Unsupported
from converters.gguf import GgufFile, TensorInfo, integer_value, text_value
from converters.output_file import new_file
from converters.strict_json import parse_json
from converters.targets.mlx.safetensors import Array, place
from converters.tensor_reader import TensorReader
from converters.tokenizer import TokenizerFiles

ARCHITECTURE = "mlx"
CONFIG_KEY = "mlx.config"
PARAMETERS_KEY = "general.parameter_count"
# A GGUF type → the same bits in safetensors.
ITEMS = {"F32": "F32", "F16": "F16", "BF16": "BF16", "I32": "U32", "I8": "U8"}
_SLICE_BYTES = 4 << 20


class NativePlan(msgspec.Struct, frozen=True, kw_only=True):
    """`header` is how `model.safetensors` begins; sizes in bytes, keys and values in fp16."""

    arrays: tuple[tuple[TensorInfo, Array], ...]
    header: bytes
    weights_bytes: int
    config_text: str
    blocks: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int

    @property
    def fp32_bytes(self) -> int:
        """In memory where 16-bit numbers are widened, as on MLX's CPU build."""
        widened = (a.nbytes for _, a in self.arrays if a.item in ("F16", "BF16"))
        return self.weights_bytes + sum(widened)

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.blocks * self.kv_heads * self.head_size * 2


def is_native(file: GgufFile) -> bool:
    return file.architecture == ARCHITECTURE


def plan_native(file: GgufFile, target: str) -> NativePlan:
    """Raises Unsupported for another target or a model that mlx-lm has not, MalformedFile."""
    if target != "mlx":
        raise Unsupported("the weights are in MLX's own format, which only MLX runs")
    text = text_value(file.metadata, CONFIG_KEY)
    config = parse_json(text, CONFIG_KEY)
    if not isinstance(config, dict):
        raise MalformedFile(f"{CONFIG_KEY} is not a JSON object")
    require_model_type(config)
    arrays = [_array(tensor) for tensor in file.tensors]
    placed, header = place(arrays)
    return NativePlan(
        arrays=tuple(zip(file.tensors, (placed[each.name] for each in arrays), strict=True)),
        header=header,
        weights_bytes=len(header) + sum(array.nbytes for array in arrays),
        config_text=text,
        blocks=_count(file, "block_count"),
        heads=_count(file, "attention.head_count"),
        kv_heads=_count(file, "attention.head_count_kv"),
        head_size=_count(file, "attention.key_length"),
        vocabulary=_count(file, "vocab_size"),
    )


def require_model_type(config: dict[str, Any]) -> str:
    """The type of mlx-lm's module. Raises Unsupported for one that is not served here."""
    model_type = config.get("model_type")
    if model_type not in MLX_MODEL_TYPES:
        raise Unsupported(f"MLX has no model of the type {str(model_type)[:80]!r} here")
    return str(model_type)


def _array(tensor: TensorInfo) -> Array:
    if tensor.type_name not in ITEMS:
        raise Unsupported(f"tensor {tensor.name!r}: MLX has no arrays of {tensor.type_name}")
    return Array(name=tensor.name, item=ITEMS[tensor.type_name], shape=tensor.shape)


def _count(file: GgufFile, key: str) -> int:
    count = integer_value(file.metadata, f"{ARCHITECTURE}.{key}", 0)
    if not 0 < count < 1 << 31:
        raise MalformedFile(f"{ARCHITECTURE}.{key} is {count}")
    return count


def write_native(
    planned: NativePlan,
    reader: TensorReader,
    folder: pathlib.Path,
    advance: Callable[[int], None],
) -> None:
    """`config.json` and `model.safetensors`, in slices."""
    (folder / MLX_CONFIG_FILE).write_text(planned.config_text, encoding="utf-8")
    with new_file(folder / MLX_WEIGHTS_FILE) as target:
        target.put(planned.header, 0)
        for tensor, array in planned.arrays:
            for start in range(0, tensor.nbytes, _SLICE_BYTES):
                data = reader.raw(tensor, start, min(_SLICE_BYTES, tensor.nbytes - start))
                advance(target.put(data, array.offset + start))


def describe_native(
    file: GgufFile, planned: NativePlan, source: str, tokenizer: TokenizerFiles
) -> Artifact:
    config = parse_json(planned.config_text, CONFIG_KEY)
    return Artifact(
        format=ARTIFACT_FORMAT,
        converter=CONVERTER_VERSION,
        source=source,
        variant=variant_folder("mlx"),
        architecture=require_model_type(config),
        model_name=text_value(file.metadata, "general.name"),
        block_count=planned.blocks,
        embedding_length=_count(file, "embedding_length"),
        heads=planned.heads,
        kv_heads=(planned.kv_heads,),
        head_size=planned.head_size,
        vocabulary=planned.vocabulary,
        context_length=_count(file, "context_length"),
        kv_bytes_per_token=planned.kv_bytes_per_token,
        special=tokenizer.special,
        tokenizer_kind=tokenizer.kind,
        pre_tokenizer=tokenizer.pre,
        chat_template=text_value(file.metadata, "tokenizer.chat_template"),
        resident_bytes={"metal": planned.weights_bytes, "cpu": planned.fp32_bytes},
        kv_bytes={"metal": planned.kv_bytes_per_token, "cpu": 2 * planned.kv_bytes_per_token},
        tensors=tuple(_record(tensor, array) for tensor, array in planned.arrays),
    )


def _record(tensor: TensorInfo, array: Array) -> TensorRecord:
    return TensorRecord(
        name=tensor.name,
        source_type=array.item,
        shape=tensor.shape,
        exactness="exact",
        form=f"mlx {array.item}",
    )
