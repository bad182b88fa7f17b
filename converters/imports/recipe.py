"""What a family says about a model: GGUF keys, and where each GGUF tensor's numbers come from.

Pure data, made from `config.json` and the tensors' names and shapes. A tensor of the folder without
a place is a refusal, never a silent loss; what is left out by rule is listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec
import numpy as np

from converters.errors import MalformedFile, Unsupported
from converters.gguf import Value
from converters.gguf_types import ValueType
from converters.gguf_writer import TypedValue
from converters.imports.config import Config
from converters.imports.safetensors import StoredTensor

MAX_EXPERTS = 1024
_FLOATS = ("F32", "F16", "BF16")
_DIGITS = re.compile(r"(?<=\.)\d{1,6}(?=\.)")


class Rule(msgspec.Struct, frozen=True):
    """What becomes of a tensor: `stem` is its GGUF name, `#` the block.

    `pairs`: rows of each head go from rotary halves to neighbours, counted by query or key heads.
    `shift` is added to each number (Gemma's norms). `skip_rows`: that many first rows are left out, and all
    after `keep_rows` more where that is not 0.
    `is_wide` keeps a matrix in F32, as llama.cpp has it. `stacks`: one of several experts.
    """

    stem: str
    pairs: Literal["", "query", "key"] = ""
    shift: float = 0.0
    skip_rows: int = 0
    keep_rows: int = 0
    is_wide: bool = False
    stacks: bool = False


Names = Mapping[str, Rule | str]


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of the GGUF: `sources` one after another (experts), or `values` that are computed.

    `is_as_it_is`: the bytes of the one source, whatever they mean. `head_rows` > 0: rows are re-ordered within heads of that many rows. A single source may have more
    rows than `shape`: those from `skip_rows` on are taken.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    sources: tuple[StoredTensor, ...] = ()
    values: tuple[float, ...] = ()
    head_rows: int = 0
    shift: float = 0.0
    skip_rows: int = 0
    is_as_it_is: bool = False


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """`left_out` are tensors that no role uses; `notes` what a user should know was not taken over."""

    architecture: str
    keys: dict[str, TypedValue]
    tensors: tuple[Placed, ...]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Keys:
    """GGUF keys below one architecture's name, each with its type."""

    def __init__(self, architecture: str) -> None:
        self.architecture = architecture
        self.found: dict[str, TypedValue] = {
            "general.architecture": TypedValue(ValueType.STRING, architecture),
            "general.type": TypedValue(ValueType.STRING, "model"),
        }

    def count(self, key: str, value: int) -> None:
        self._put(key, ValueType.UINT32, value)

    def number(self, key: str, value: float) -> None:
        self._put(key, ValueType.FLOAT32, value)

    def text(self, key: str, value: str) -> None:
        self._put(key, ValueType.STRING, value)

    def flag(self, key: str, value: bool) -> None:
        self._put(key, ValueType.BOOL, value)

    def flags(self, key: str, values: list[bool]) -> None:
        self._put(key, ValueType.BOOL, np.array(values, np.bool_))

    def _put(self, key: str, kind: ValueType, value: Value) -> None:
        self.found[f"{self.architecture}.{key}"] = TypedValue(kind, value)


class Sizes(msgspec.Struct, frozen=True):
    """Of the heads, which tell how rows are re-ordered."""

    heads: int
    kv_heads: int
    head_size: int


def place_tensors(
    tensors: Mapping[str, StoredTensor],
    names: Names,
    sizes: Sizes,
    *,
    prefixes: Iterable[str] = ("",),
    left_out: re.Pattern[str] | None = None,
) -> tuple[list[Placed], tuple[str, ...]]:
    """The GGUF's tensors, and the names of those left out by rule.

    `names`: the stem of a source, without prefix, `.weight` or `.bias`, numbers as `#`. Raises
    Unsupported for a tensor without a place or of a type that is not imported.
    """
    placed: dict[str, Placed] = {}
    stacks: dict[str, dict[int, StoredTensor]] = {}
    dropped: list[str] = []
    for name, tensor in tensors.items():
        stem, numbers, suffix = _parts(name, prefixes)
        rule = names.get(stem)
        if rule is None:
            if left_out is None or not left_out.search(name):
                raise Unsupported(f"tensor {name!r} has no place in this architecture")
            dropped.append(name)
            continue
        rule = Rule(rule) if isinstance(rule, str) else rule
        target = rule.stem.replace("#", numbers[0] if numbers else "") + suffix
        if rule.stacks:
            stacks.setdefault(target, {})[int(numbers[-1])] = tensor
            continue
        if target in placed:
            raise MalformedFile(f"tensor {name!r} has the place of another: {target!r}")
        placed[target] = _placed(target, tensor, rule, sizes)
    for target, found in stacks.items():
        placed[target] = _stacked(target, found)
    return sorted(placed.values(), key=_order), tuple(dropped)


def _parts(name: str, prefixes: Iterable[str]) -> tuple[str, list[str], str]:
    """(stem with # for numbers, the numbers, ".weight" or ".bias" or "")."""
    for prefix in prefixes:
        if prefix and name.startswith(prefix):
            name = name.removeprefix(prefix)
            break
    for suffix in (".weight", ".bias"):
        if name.endswith(suffix):
            stem = name.removesuffix(suffix)
            break
    else:
        stem, suffix = name, ""
    dotted = f".{stem}."
    return _DIGITS.sub("#", dotted)[1:-1], _DIGITS.findall(dotted), suffix


def _placed(target: str, tensor: StoredTensor, rule: Rule, sizes: Sizes) -> Placed:
    require_floats(tensor)
    rows = tensor.shape[0] if tensor.shape else 0
    if not tensor.elements or rule.skip_rows >= rows:
        raise MalformedFile(f"tensor {tensor.name!r} has the shape {list(tensor.shape)}")
    kept = min(rows - rule.skip_rows, rule.keep_rows or rows)
    head_rows = 0
    if rule.pairs:
        heads = sizes.heads if rule.pairs == "query" else sizes.kv_heads
        if rows != heads * sizes.head_size:
            raise MalformedFile(
                f"tensor {tensor.name!r} has {rows} rows for {heads} heads of {sizes.head_size}"
            )
        head_rows = sizes.head_size
    is_wide = rule.is_wide or len(tensor.shape) == 1 or bool(rule.shift)
    return Placed(
        name=target,
        shape=(kept, *tensor.shape[1:]),
        type_name="F32" if is_wide else tensor.dtype,
        sources=(tensor,),
        head_rows=head_rows,
        shift=rule.shift,
        skip_rows=rule.skip_rows,
    )


def _stacked(target: str, found: dict[int, StoredTensor]) -> Placed:
    """Experts one after another; all of one shape and type."""
    if len(found) > MAX_EXPERTS or sorted(found) != list(range(len(found))):
        raise MalformedFile(f"{target!r}: the experts are not numbered from 0 on")
    sources = tuple(found[index] for index in range(len(found)))
    first = sources[0]
    for source in sources:
        require_floats(source)
        if (source.shape, source.dtype) != (first.shape, first.dtype) or not source.elements:
            raise MalformedFile(f"tensor {source.name!r} is not of its neighbours' shape and type")
    return Placed(
        name=target, shape=(len(sources), *first.shape), type_name=first.dtype, sources=sources
    )


def require_floats(tensor: StoredTensor) -> None:
    """Raises Unsupported for numbers that are codes of a quantisation, or wider than F32."""
    if tensor.dtype not in _FLOATS:
        raise Unsupported(
            f"tensor {tensor.name!r} is stored as {tensor.dtype}: only {', '.join(_FLOATS)} are"
            " imported"
        )


def computed(name: str, values: list[float]) -> Placed:
    """A vector in F32 that no file holds."""
    return Placed(name=name, shape=(len(values),), type_name="F32", values=tuple(values))


def _order(tensor: Placed) -> tuple[int, int, str]:
    """What is met first comes first: the table, the blocks in order, the rest."""
    match = re.match(r"blk\.(\d+)\.", tensor.name)
    if match:
        return (1, int(match[1]), tensor.name)
    return (0 if tensor.name.startswith("token") else 2, 0, tensor.name)


def head_sizes(config: Config, *, head_size: int = 0) -> Sizes:
    """`head_size` is the family's own where the file does not say; 0: the width by the heads."""
    heads = config.count("num_attention_heads")
    if not heads:
        raise MalformedFile("config.json: num_attention_heads is 0")
    size = config.count("head_dim", head_size or config.count("hidden_size") // heads)
    kv_heads = config.count("num_key_value_heads", heads)
    if not size or not kv_heads or size > 1 << 16 or heads > 1 << 16:
        raise MalformedFile("config.json: heads of no size, or none of keys")
    return Sizes(heads, kv_heads, size)
