"""Which GGML type each tensor gets under a file type such as Q4_K_M: llama.cpp's own choices.

Pure: names and shapes in, names of types out. What is kept as it is, which tensors get more bits and
what replaces a type whose blocks do not fill the rows follows llama.cpp's `llama-quant.cpp` for files
made without an importance matrix; tests compare with tables that its own quantiser wrote.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from converters.gguf import GgufFile, TensorInfo, integer_value
from converters.quantise.encoder import ENCODERS


class FileType(NamedTuple):
    """`number` is `general.file_type`; `usual` what most tensors get."""

    number: int
    usual: str


FILE_TYPES = {
    "F32": FileType(0, "F32"), "F16": FileType(1, "F16"), "BF16": FileType(32, "BF16"),
    "Q8_0": FileType(7, "Q8_0"), "Q4_0": FileType(2, "Q4_0"), "Q4_1": FileType(3, "Q4_1"),
    "Q5_0": FileType(8, "Q5_0"), "Q5_1": FileType(9, "Q5_1"), "Q4_K_S": FileType(14, "Q4_K"),
    "Q4_K_M": FileType(15, "Q4_K"), "Q5_K_S": FileType(16, "Q5_K"), "Q5_K_M": FileType(17, "Q5_K"),
    "Q6_K": FileType(18, "Q6_K"),
}  # fmt: skip
FLOAT_TYPES = ("F32", "F16", "BF16")

# Blocks of 256 that do not fill a row give way to blocks of 32, those to F16.
_FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_LAST_FALLBACK = "F16"

# Small, or too sensitive to rounding: parts of names of matrices that are never quantised.
_KEPT_PARTS = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel",
    "per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight",
    "indexer.q_proj.weight", "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight",
    "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight",
    "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight",
    "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight", "attn_rel_b.weight", ".position_embd", "sam.pos_embd",
    "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook",
    "mm.a.code_embd",
)  # fmt: skip
_KEPT_NAMES = ("position_embd.weight", "token_types.weight")
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
_OUTPUT = "output.weight"
_VALUES = ("attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight")

_BLOCK = re.compile(r"blk\.(\d+)\.")
# Models of 70B by llama.cpp's reckoning: architecture → blocks.
_BLOCKS_OF_70B = {"llama": 80, "qwen2": 80, "deci": 80, "jais2": 68}


class Choice(NamedTuple):
    """What becomes of one tensor. `wanted` is another type where its blocks did not fill the rows."""

    type_name: str
    wanted: str


class _Model(NamedTuple):
    blocks: int
    experts: int
    is_70b: bool
    is_tied: bool
    is_falcon: bool
    value_tensors: int


def choose_types(header: GgufFile, file_type: str) -> dict[str, Choice]:
    """For every tensor of the file its type under `file_type` (a key of FILE_TYPES)."""
    chooser = _Chooser(_model(header), file_type)
    ordered = sorted(header.tensors, key=lambda tensor: _place(tensor.name))
    return {tensor.name: chooser.choose(tensor) for tensor in ordered}


def is_quantisable(tensor: TensorInfo) -> bool:
    """Matrices and stacks of them, without the small and the sensitive ones."""
    name = tensor.name
    if _rank(tensor) < 2 or not name.endswith("weight") or name in _KEPT_NAMES:
        return False
    return not any(part in name for part in _KEPT_PARTS)


class _Chooser:
    """Counts the tensors of a role as they come, block after block."""

    def __init__(self, model: _Model, file_type: str) -> None:
        self._model = model
        self._file_type = file_type
        self._usual = FILE_TYPES[file_type].usual
        self._values = 0
        self._downs = 0

    def choose(self, tensor: TensorInfo) -> Choice:
        if not is_quantisable(tensor):
            return Choice(tensor.type_name, tensor.type_name)
        if self._usual in FLOAT_TYPES:
            return Choice(self._usual, self._usual)
        wanted = self._wanted(tensor)
        return Choice(_fitting(wanted, tensor.shape[-1]), wanted)

    def _wanted(self, tensor: TensorInfo) -> str:
        name, usual = tensor.name, self._usual
        if name == _OUTPUT or (self._model.is_tied and name in _EMBEDDINGS):
            return self._for_output(tensor.shape[-1])
        if name in _EMBEDDINGS:
            return usual
        if any(part in name for part in _VALUES):
            return self._for_values()
        if "attn_k.weight" in name:
            return "Q8_0" if self._model.experts == 8 else usual
        if "ffn_down" in name and not _is_attention(name):
            return self._for_down(name)
        if "attn_output.weight" in name and self._model.experts == 8:
            return "Q5_K" if self._file_type in ("Q4_K_S", "Q4_K_M") else usual
        return usual

    def _for_output(self, columns: int) -> str:
        is_wide = self._model.is_falcon or self._usual == "Q8_0"
        if columns % ENCODERS[self._usual].block_size or is_wide:
            return "Q8_0"
        return "Q6_K"

    def _for_values(self) -> str:
        index, self._values = self._values, self._values + 1
        chosen = self._usual
        if self._file_type in ("Q4_K_M", "Q5_K_M"):
            chosen = "Q6_K" if _has_more_bits(index, self._model.value_tensors) else chosen
        elif self._file_type == "Q4_K_S" and index < 4:
            chosen = "Q5_K"
        if self._model.is_70b and chosen == "Q4_K":
            chosen = "Q5_K"
        return "Q8_0" if self._model.experts == 8 else chosen

    def _for_down(self, name: str) -> str:
        index, self._downs = self._downs, self._downs + 1
        if self._model.experts > 1:
            index = _place(name)[0]
        blocks = self._model.blocks
        if self._model.is_falcon and self._file_type in ("Q4_K_S", "Q4_K_M"):
            return self._for_down_of_falcon(index)
        if self._file_type in ("Q4_K_M", "Q5_K_M") and _has_more_bits(index, blocks):
            return "Q6_K"
        if self._file_type == "Q4_K_S" and index < blocks // 8:
            return "Q5_K"
        return self._usual

    def _for_down_of_falcon(self, index: int) -> str:
        blocks, is_medium = self._model.blocks, self._file_type == "Q4_K_M"
        if is_medium and index < blocks // 16:
            return "Q6_K"
        return "Q5_K" if is_medium and _has_more_bits(index, blocks) else self._usual


def _model(header: GgufFile) -> _Model:
    architecture, metadata = header.architecture, header.metadata
    blocks = integer_value(metadata, f"{architecture}.block_count", 0)
    heads = metadata.get(f"{architecture}.attention.head_count")
    kv_heads = metadata.get(f"{architecture}.attention.head_count_kv", heads)
    has_70b_blocks = blocks == _BLOCKS_OF_70B.get(architecture)
    names = [tensor.name for tensor in header.tensors]
    return _Model(
        blocks=blocks,
        experts=integer_value(metadata, f"{architecture}.expert_count", 0),
        is_70b=has_70b_blocks and (architecture != "llama" or _first(heads) != _first(kv_heads)),
        is_tied=_OUTPUT not in names,
        is_falcon=architecture == "falcon",
        value_tensors=sum(any(part in name for part in _VALUES) for name in names),
    )


def _first(value: object) -> object:
    """Of a number for every block the first one's."""
    return value if isinstance(value, int) or value is None else next(iter(value), None)  # pyright: ignore


def _is_attention(name: str) -> bool:
    return any(f"attn_{part}.weight" in name for part in ("q", "output"))


def _has_more_bits(index: int, count: int) -> bool:
    """The first and the last eighth, and every third between."""
    eighth = count // 8
    return index < eighth or index >= 7 * count // 8 or (index - eighth) % 3 == 2


def _fitting(wanted: str, columns: int) -> str:
    if columns % ENCODERS[wanted].block_size == 0:
        return wanted
    fallback = _FALLBACKS.get(wanted, _LAST_FALLBACK)
    return fallback if columns % ENCODERS[fallback].block_size == 0 else _LAST_FALLBACK


def _place(name: str) -> tuple[int, str]:
    """Block by block, by name within; first what belongs to no block."""
    found = _BLOCK.match(name)
    return (int(found[1]) if found else -1, name)


def _rank(tensor: TensorInfo) -> int:
    """Without leading axes of one entry."""
    shape = list(tensor.shape)
    while len(shape) > 1 and shape[0] == 1:
        shape.pop(0)
    return len(shape)
