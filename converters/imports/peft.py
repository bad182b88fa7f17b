"""A PEFT LoRA folder as a GGUF adapter for one base: planned whole, then written as models are.

Names and orders of rows are those by which the base itself is imported. GGUF has one alpha for all
pairs, so where PEFT scales a pair otherwise (rank-stabilised, or by a pattern) the rest is folded
into its B. What PEFT can say and a low-rank pair cannot is refused by name.
Source: PEFT's `LoraConfig` and `LoraLayer.update_layer`; llama.cpp's `convert_lora_to_gguf.py`.
"""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from converters.adapters.lora import check_fit, of_use, read_lora
from converters.architectures.mixers import Attention
from converters.architectures.model import ModelShape
from converters.architectures.registry import describe
from converters.errors import MalformedFile, Unsupported
from converters.gguf import GgufFile, TensorInfo, parse_header
from converters.gguf_types import ValueType
from converters.gguf_writer import GgufPlan, NewTensor, TypedValue, plan_file
from converters.imports.config import Config
from converters.imports.families import decoder, gemma, llama, phi3, qwen
from converters.imports.folder import ModelFiles
from converters.imports.recipe import Names, Placed, Rule, Sizes, place_tensors
from converters.imports.safetensors import StoredTensor
from converters.imports.weights import slices
from converters.made_gguf import make_gguf
from converters.progress import Progress

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_NAMES: dict[str, Names] = {
    "gemma": gemma.GEMMA,
    "gemma2": gemma.SANDWICH,
    "gemma3": gemma.GEMMA3,
    "granite": llama.NAMES,
    "llama": {**llama.MIXTURE, **llama.NAMES},
    "phi3": phi3.NAMES,
    "qwen2": decoder.PLAIN,
    "qwen3": qwen.QWEN3,
    "qwen3moe": qwen.QWEN3_MIXTURE,
}
# Before the names of a text model's modules, in adapters of plain and of image models.
_PREFIXES = (
    "base_model.model.model.language_model.",
    "base_model.model.language_model.model.",
    "base_model.model.language_model.",
    "base_model.model.model.",
    "base_model.model.",
)
_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(?:\.default)?\.weight")
# Each changes what an adapted matrix computes, or adds to what is adapted.
_REFUSED = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "modules_to_save",
    "fan_in_fan_out",
    "layer_replication",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "target_parameters",
    "arrow_config",
)
# These leave the base's weights as they were; the others put a part of them into the adapter.
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
_PLAIN_PATTERN = re.compile(r"[A-Za-z0-9_.]{1,200}")
MAX_PATTERNS = 1 << 14


class _Pair(NamedTuple):
    module: str
    a: StoredTensor
    b: StoredTensor


class PeftPlan(msgspec.Struct, frozen=True, kw_only=True):
    """`factors` by the name of a GGUF tensor: what its numbers are multiplied by."""

    gguf: GgufPlan
    placed: dict[str, Placed]
    factors: dict[str, float]


def import_adapter(
    files: ModelFiles, base: GgufFile, final: pathlib.Path, progress: Progress
) -> int:
    """Makes the folder `final` with the GGUF in it; bytes. Raises ConversionError."""
    progress.start("plan")
    planned = plan_adapter_import(files, base)
    return make_gguf(final, planned.gguf, _told(planned, progress.advance), progress).file_bytes


def plan_adapter_import(files: ModelFiles, base: GgufFile) -> PeftPlan:
    """Pure but for reading headers and texts; the plan fits the base."""
    if not files.has(WEIGHTS):
        raise MalformedFile(f"the adapter has no {WEIGHTS}; pickled weights are never read")
    values = files.json(CONFIG)
    _check(values)
    model = describe(base)
    pairs = _pairs(files.tensors())
    alpha, factors = _scales(values, pairs)
    placed = {each.name: each for each in _placed(pairs, model)}
    folded = {
        name: factors[_module(each.sources[0].name)]
        for name, each in placed.items()
        if name.endswith(".lora_b") and _module(each.sources[0].name) in factors
    }
    keys = {
        "general.architecture": TypedValue(ValueType.STRING, model.architecture),
        "general.type": TypedValue(ValueType.STRING, "adapter"),
        "adapter.type": TypedValue(ValueType.STRING, "lora"),
        "adapter.lora.alpha": TypedValue(ValueType.FLOAT32, alpha),
    }
    tensors = [
        NewTensor(each.name, each.shape, "F32" if each.name in folded else each.type_name)
        for each in placed.values()
    ]
    try:
        gguf = plan_file(keys, tensors)
    except ValueError as error:
        raise MalformedFile(str(error)) from error
    lora = read_lora(parse_header(gguf.header, gguf.total_bytes))
    check_fit(of_use(lora, model), model, base.architecture)
    return PeftPlan(gguf=gguf, placed=placed, factors=folded)


def _check(values: dict[str, Any]) -> None:
    config = Config(values, CONFIG)
    config.require("peft_type", "LORA", default="")
    config.require("bias", "none", default="none")
    for key in _REFUSED:
        config.refuse(key)
    start = values.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise Unsupported(
            f"{CONFIG}: init_lora_weights {str(start)[:80]!r} is not supported: it changes the"
            " base's own weights"
        )


def _module(name: str) -> str:
    match = _TENSOR.fullmatch(name)
    if match is None:
        raise Unsupported(f"adapter tensor {name!r} is no part of a low-rank pair")
    return match["module"]


def _pairs(tensors: Mapping[str, StoredTensor]) -> list[_Pair]:
    found: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        module = _module(name)
        part = name[len(module) + len(".lora_")]
        if part in found.setdefault(module, {}):
            raise MalformedFile(f"adapter tensor {name!r} appears twice")
        found[module][part] = tensor
    for module, parts in found.items():
        if len(parts) != 2:
            raise MalformedFile(f"adapter module {module!r} has one half of a pair")
        for tensor in parts.values():
            if len(tensor.shape) != 2 or not tensor.elements:
                raise MalformedFile(f"adapter tensor {tensor.name!r} is no matrix")
    if not found:
        raise MalformedFile(f"{WEIGHTS} has no tensors")
    return [_Pair(module, parts["A"], parts["B"]) for module, parts in found.items()]


# ---- scales ----


def _scales(values: dict[str, Any], pairs: list[_Pair]) -> tuple[float, dict[str, float]]:
    """GGUF's alpha, and by module what is left of its scale where that is not 1."""
    config, patterns = Config(values, CONFIG), _patterns(values)
    is_stabilised = config.flag("use_rslora", False)
    default = config.number("lora_alpha", 8.0)
    alphas: dict[str, float] = {}
    for pair in pairs:
        rank, alpha = pair.a.shape[0], default
        for pattern, value in patterns.items():
            if pair.module == pattern or pair.module.endswith(f".{pattern}"):
                alpha = value
                break
        # scale · rank, which is alpha itself but for rank-stabilised ones.
        alphas[pair.module] = alpha * math.sqrt(rank) if is_stabilised else alpha
    if 0.0 in alphas.values():
        raise MalformedFile(f"{CONFIG}: an alpha of 0 leaves nothing of the adapter")
    whole = alphas[pairs[0].module]
    return whole, {name: alpha / whole for name, alpha in alphas.items() if alpha != whole}


def _patterns(config: dict[str, Any]) -> dict[str, float]:
    """Module → alpha; only plain names, of the expressions that PEFT allows."""
    values: Any = config.get("alpha_pattern") or {}
    if not isinstance(values, dict) or len(values) > MAX_PATTERNS:
        raise MalformedFile(f"{CONFIG}: alpha_pattern is no object of a sensible size")
    for pattern in values:
        if not _PLAIN_PATTERN.fullmatch(pattern):
            raise Unsupported(
                f"{CONFIG}: the expression {pattern[:80]!r} in alpha_pattern is not supported"
            )
    patterns = Config(values, CONFIG)
    return {pattern: patterns.number(pattern) for pattern in values}


# ---- places ----


def _placed(pairs: list[_Pair], model: ModelShape) -> Iterator[Placed]:
    """Both halves of each pair, named after the base's tensor."""
    if model.architecture not in _NAMES:
        raise Unsupported(
            f"adapters from safetensors for {model.architecture!r} models are not supported yet;"
            " convert it to GGUF and take that"
        )
    names = _NAMES[model.architecture]
    attention = model.blocks[0].mixer
    assert isinstance(attention, Attention)
    sizes = Sizes(attention.heads, attention.kv_heads, attention.head_size)
    for pair in pairs:
        if ".experts." in pair.module:
            raise Unsupported(f"adapters of experts are not supported yet: {pair.module!r}")
    # Only B has the rows of the matrix, which may change places.
    plain = {stem: rule.stem if isinstance(rule, Rule) else rule for stem, rule in names.items()}
    for part, known in (("a", plain), ("b", {**plain, **_paired(names)})):
        given = {f"{pair.module}.weight": getattr(pair, part) for pair in pairs}
        found, _ = place_tensors(given, known, sizes, prefixes=_PREFIXES)
        for each in found:
            yield msgspec.structs.replace(each, name=f"{each.name}.lora_{part}")


def _paired(names: Names) -> dict[str, Rule]:
    return {
        stem: Rule(rule.stem, pairs=rule.pairs)
        for stem, rule in names.items()
        if isinstance(rule, Rule) and rule.pairs
    }


# ---- writing ----


def _told(
    planned: PeftPlan, advance: Callable[[int], None]
) -> Callable[[TensorInfo], Iterator[npt.NDArray[np.uint8]]]:
    def of(tensor: TensorInfo) -> Iterator[npt.NDArray[np.uint8]]:
        placed = planned.placed[tensor.name]
        factor = planned.factors.get(tensor.name)
        if factor is not None:
            placed = msgspec.structs.replace(placed, type_name="F32")
        for piece in slices(placed):
            whole = piece
            if factor is not None:
                whole = (piece.view("<f4") * np.float32(factor)).view(np.uint8)
            yield whole
            advance(whole.nbytes)

    return of
