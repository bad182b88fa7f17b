"""Every touch of mlx-lm: which of its modules are used, and what of them is not promised to anybody.

Its model modules and its caches are used, nothing else: not its loader (any folder may name any code
there), not its batch generator (one failing sampler costs all rows, and samplers must be MLX graphs),
not its tokenizers. The package's own `__init__` is never run: it imports transformers, lowers the
limit of open files for good and wires memory. mlx-lm is pinned; `tests/backends/mlx/test_internals.py`
breaks when what is relied on here has moved. What images need of the modules is in `mlx_lm_images`.
"""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
from mlx import nn

from backends.types import EngineError
from converters.artifact import MLX_MODEL_TYPES

VERSION = "0.32.2"
# One per block: a cache of keys and values, a window, a state, or a list of those.
Caches = list[Any]
Weights = dict[str, mx.array]
Config = Mapping[str, Any]


def submodule(name: str) -> Any:
    """`mlx_lm.<name>`, without what the package itself does when it is imported."""
    if "mlx_lm" not in sys.modules:
        spec = importlib.util.find_spec("mlx_lm")
        if spec is None or spec.submodule_search_locations is None:
            raise EngineError("load", "mlx-lm is not installed")
        package = types.ModuleType("mlx_lm")
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules["mlx_lm"] = package
    return importlib.import_module(f"mlx_lm.{name}")


# ---- models ----


def build_model(config: Config, weights: Weights) -> nn.Module:
    """A model with its (still lazy) weights in place. Raises EngineError for a type not listed here.

    Names that the module has not, or lacks, are errors: `load_weights` is strict.
    """
    model_type = str(config.get("model_type", ""))
    name = MLX_MODEL_TYPES.get(model_type, "")
    if not name:
        raise EngineError("load", f"MLX has no model of the type {model_type!r} here")
    try:
        module = submodule(f"models.{name}")
    except BaseException as error:  # some modules leave the process where a package is missing
        raise EngineError("load", f"mlx-lm's {name} cannot be imported: {error}") from error
    model = module.Model(module.ModelArgs.from_dict(dict(config)))
    if hasattr(model, "sanitize"):
        weights = model.sanitize(weights)
    if isinstance(quantization := config.get("quantization"), Mapping):
        _quantise(model, quantization, weights)
    model.eval()
    model.load_weights(list(weights.items()), strict=True)
    return model


def _quantise(model: nn.Module, quantization: Mapping[str, Any], weights: Weights) -> None:
    """Modules that the config names get its form; others with scales the default."""

    def form(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if path in quantization:
            return quantization[path]
        return hasattr(module, "to_quantized") and f"{path}.scales" in weights

    nn.quantize(
        model,
        group_size=quantization["group_size"],
        bits=quantization["bits"],
        mode=quantization.get("mode", "affine"),
        class_predicate=form,
    )


def body_of(model: nn.Module) -> Any | None:
    """What gives the hidden states [B, S, E] that the head is given; None where it is not known.

    Gemma 3n's body has the head in it: it would give logits.
    """
    inner = getattr(model, "language_model", model)
    body = getattr(inner, "model", None)
    return None if hasattr(body, "language_model") else body


# ---- caches ----


class Held(list[Any]):
    """Caches that the engine holds, one per block; unlike a plain list it can be told apart."""

    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]
    __eq__ = object.__eq__  # pyright: ignore[reportAssignmentType]


# Is told the name, the arguments and the result of everything that makes or changes caches.
Listener = Callable[[str, Sequence[Any], Any], None]
_listeners: list[Listener] = []


def listen(listener: Listener | None) -> None:
    """One at a time; None: nobody any more."""
    _listeners[:] = [listener] if listener else []


def _heard(operation: Callable[..., Any]) -> Callable[..., Any]:
    """NOTE: an operation that calls another one would be told twice; they call plain helpers."""

    @functools.wraps(operation)
    def told(*arguments: Any) -> Any:
        result = operation(*arguments)
        if isinstance(result, list):
            result = Held(result)
        for listener in _listeners:
            listener(operation.__name__, arguments, result)
        return result

    return told


@_heard
def make_caches(model: nn.Module) -> Caches:
    return submodule("models.cache").make_prompt_cache(model)


def can_batch(caches: Caches) -> bool:
    """Whether rows with such caches can become one batch."""
    return all(
        can_batch(list(cache.caches)) if _is(cache, "CacheList") else hasattr(cache, "merge")
        for cache in caches
    )


@_heard
def batch_of(rows: Sequence[Caches]) -> Caches:
    """Caches of one row each as caches of one batch, in this order."""
    return [type(layer[0]).merge(list(layer)) for layer in zip(*rows, strict=True)]


@_heard
def extend_batch(batch: Caches, other: Caches) -> None:
    for cache, more in zip(batch, other, strict=True):
        cache.extend(more)


@_heard
def filter_batch(batch: Caches, places: Sequence[int]) -> None:
    for cache in batch:
        cache.filter(list(places))


@_heard
def row_of(batch: Caches, place: int) -> Caches:
    """One row of a batch, evaluated: a lazy one would keep the whole batch alive."""
    row = [cache.extract(place) for cache in batch]
    evaluate(row)
    return row


def evaluate(caches: Iterable[Any], *others: mx.array) -> None:
    mx.eval([cache.state for cache in caches], *others)


def can_trim(caches: Caches) -> bool:
    """Whether positions can be taken back: not from states, nor from a window that is full."""
    return all(cache.is_trimmable() for cache in caches)


@_heard
def trim(caches: Caches, positions: int) -> None:
    for cache in caches:
        cache.trim(positions)


@_heard
def prefix_of(caches: Caches, held: int, wanted: int) -> Caches:
    """The first `wanted` of `held` positions in memory of their own. Needs `can_trim` if fewer."""
    copied = [_prefix_of(cache, held, wanted) for cache in caches]
    evaluate(copied)
    return copied


def _prefix_of(cache: Any, held: int, wanted: int) -> Any:
    if _is(cache, "CacheList"):
        return type(cache)(*(_prefix_of(each, held, wanted) for each in cache.caches))
    if _is(cache, "KVCache") and cache.keys is not None:
        copied = type(cache)()
        copied.keys = mx.contiguous(cache.keys[..., :wanted, :])
        copied.values = mx.contiguous(cache.values[..., :wanted, :])
        copied.offset = wanted
        return copied
    copied = copy.deepcopy(cache)  # shares its buffers until one of both is written to
    if wanted < held:
        copied.trim(held - wanted)
    return copied


# ---- caches taken apart ----


class CacheParts(NamedTuple):
    """One cache: arrays that can be cut by position (on axis 2), others, and what it counts."""

    kind: str
    growing: tuple[mx.array, ...] = ()
    whole: tuple[mx.array | None, ...] = ()
    counts: tuple[int, ...] = ()


def kinds_of(caches: Caches) -> list[str]:
    """Lists of caches are taken apart."""
    return [type(cache).__name__ for cache in _flat(caches)]


# Nothing else is put together again: llama4's chunks, or codes of keys that nobody here makes.
REBUILT_KINDS = frozenset({"KVCache", "RotatingKVCache", "ArraysCache"})


def parts_of(caches: Caches, held: int) -> list[CacheParts]:
    """Of one row that holds `held` positions; arrays are views. Raises ValueError for other caches."""
    return [_parts_of(cache, held) for cache in _flat(caches)]


def _parts_of(cache: Any, held: int) -> CacheParts:
    kind = type(cache).__name__
    if kind not in REBUILT_KINDS:
        raise ValueError(f"mlx-lm's {kind} cannot be taken apart")
    if cache.empty():
        return CacheParts(kind)
    if kind == "ArraysCache":
        if cache.left_padding is not None or cache.lengths is not None:
            raise ValueError("these states are a batch's")
        return CacheParts(kind, whole=tuple(cache.cache))
    if cache.offset != held:
        raise ValueError(f"{cache.offset} positions in a cache that should hold {held}")
    planes = cache.keys, cache.values
    counts = (cache.keep, cache.max_size) if kind == "RotatingKVCache" else ()
    if not cache.is_trimmable():  # its positions lie in a ring
        return CacheParts(kind, whole=planes, counts=(*counts, cache.offset, cache._idx))
    return CacheParts(kind, tuple(plane[..., :held, :] for plane in planes), counts=counts)


@_heard
def rebuilt(model: nn.Module, parts: Sequence[CacheParts], held: int) -> Caches:
    """What `parts_of` took apart, evaluated. Raises ValueError where the model's caches are others."""
    caches = submodule("models.cache").make_prompt_cache(model)
    for cache, each in zip(_flat(caches), parts, strict=True):
        if type(cache).__name__ != each.kind:
            raise ValueError(f"{each.kind} in the place of {type(cache).__name__}")
        _rebuild(cache, each, held)
    evaluate(cache for cache in caches if not cache.empty())
    return caches


def _rebuild(cache: Any, parts: CacheParts, held: int) -> None:
    if parts.kind == "RotatingKVCache" and parts.counts:
        keep, max_size, *turned = parts.counts
        if (keep, max_size) != (cache.keep, cache.max_size):
            raise ValueError("a window of another size")
        cache.offset, cache._idx = turned or (held, held)
    if parts.kind == "ArraysCache" and parts.whole:
        cache.cache = list(parts.whole)
    elif planes := parts.growing or parts.whole:
        cache.keys, cache.values = planes
        if parts.growing:
            cache.offset = held


# ---- what caches take ----


def nbytes(caches: Caches) -> int:
    return sum(cache.nbytes for cache in caches if not cache.empty())


def position_bytes(caches: Caches) -> tuple[int, int, int]:
    """(bytes of a position, of a full window, of states) of one row that holds something."""
    growing = windows = fixed = 0
    for cache in _flat(caches):
        if cache.empty():
            continue
        if _is(cache, "RotatingKVCache"):
            windows += cache.nbytes // cache.keys.shape[2] * cache.max_size
        elif getattr(cache, "keys", None) is not None:
            growing += cache.nbytes // cache.keys.shape[2]
        else:
            fixed += cache.nbytes
    return growing, windows, fixed


def _flat(caches: Iterable[Any]) -> Iterable[Any]:
    for cache in caches:
        if _is(cache, "CacheList"):
            yield from _flat(cache.caches)
        else:
            yield cache


def _is(cache: Any, kind: str) -> bool:
    return type(cache).__name__ == kind
