"""Every option that a client may send, in one table: what it means here and what type it must have.

An option without meaning here is accepted and named in the `Hearth-Warnings` header: never an
error, because clients send them all, and never silent. Wrong types fail with Ollama's texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

import msgspec

from backends.types import Limits, Sampling
from daemon.errors import BadOption

OptionType = Literal["integer", "float32", "boolean", "strings"]
Place = Literal["sampling", "limits", "stop", "hint"]
_MIN_CONTEXT_LENGTH = 4
_MIN_SEEING_CONTEXT_LENGTH = 2048
_INT_LIMIT = 2**31 - 1


class Option(NamedTuple):
    """`place` says which part of a request the value becomes; a hint becomes none."""

    type: OptionType
    place: Place
    field: str = ""


def _sampling(kind: OptionType, *names: str) -> dict[str, Option]:
    return {name: Option(kind, "sampling", name) for name in names}


def _hints(kind: OptionType, *names: str) -> dict[str, Option]:
    return {name: Option(kind, "hint") for name in names}


OPTIONS: dict[str, Option] = {
    **_sampling("integer", "seed", "top_k", "repeat_last_n", "mirostat"),
    **_sampling("float32", "temperature", "top_p", "min_p", "typical_p", "tfs_z"),
    **_sampling("float32", "repeat_penalty", "presence_penalty", "frequency_penalty"),
    **_sampling("float32", "mirostat_tau", "mirostat_eta"),
    **_sampling("boolean", "penalize_newline"),
    "num_ctx": Option("integer", "limits", "context_length"),
    "num_predict": Option("integer", "limits", "max_tokens"),
    "num_keep": Option("integer", "limits", "num_keep"),
    "stop": Option("strings", "stop"),
    # How other servers place and batch their work; this one decides that itself.
    **_hints("integer", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_gqa"),
    **_hints("integer", "draft_num_predict"),
    **_hints("boolean", "use_mmap", "use_mlock", "numa", "low_vram", "f16_kv", "logits_all"),
    **_hints("boolean", "vocab_only", "embedding_only"),
    **_hints("float32", "rope_frequency_base", "rope_frequency_scale"),
}


class ResolvedOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`ignored` names the options of the request that have no meaning here.

    `wanted_context_length` is the one in `limits`, or None when neither request nor model say one:
    then rows of any length serve.
    """

    sampling: Sampling
    limits: Limits
    stop: tuple[str, ...] = ()
    wanted_context_length: int | None = None
    ignored: tuple[str, ...] = ()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _typed_strings(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple):
        raise BadOption(f'option "{name}" must be of type array')
    items = cast("list[Any]", value)
    if not all(isinstance(item, str) for item in items):
        raise BadOption(f'option "{name}" must be of an array of strings')
    return tuple(item for item in items if item)


def typed_value(name: str, kind: OptionType, value: Any) -> Any:
    """`value` as the type the option has. Integers given as floats are cut. Raises BadOption."""
    if kind == "strings":
        return _typed_strings(name, value)
    if kind == "boolean":
        fits = isinstance(value, bool)
    else:
        fits = _is_number(value) and math.isfinite(value)
    if not fits:
        raise BadOption(f'option "{name}" must be of type {kind}')
    if kind == "integer":
        # No range is ever refused; beyond 32 bits nothing differs but what a frame can carry.
        return max(-_INT_LIMIT - 1, min(_INT_LIMIT, int(value))) if name != "seed" else int(value)
    return float(value) if kind == "float32" else value


def _context_length(asked: int | None, default: int, trained: int, least: int) -> int:
    wanted = max(least, default if asked is None else asked)
    return min(wanted, trained) if trained > 0 else wanted


def _seed(values: dict[str, Any]) -> int | None:
    seed = values.pop("seed", -1)
    return None if seed == -1 else seed % 2**63


def _sort_values(merged: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The typed values by place and field, and the names of those without meaning here."""
    places: dict[str, dict[str, Any]] = {"sampling": {}, "limits": {}, "stop": {}}
    ignored: list[str] = []
    for name, value in merged.items():
        option = OPTIONS.get(name)
        if option is None:
            ignored.append(name)
            continue
        typed = typed_value(name, option.type, value)
        if option.place == "hint":
            ignored.append(name)
        else:
            places[option.place][option.field] = typed
    return places, ignored


def resolve_options(
    request: Mapping[str, Any] | None,
    model: Mapping[str, Any],
    *,
    default_context_length: int,
    trained_context_length: int = 0,
    has_eyes: bool = False,
) -> ResolvedOptions:
    """Request over model over defaults; null is not sent. Raises BadOption.

    `trained_context_length` caps num_ctx; 0 when it is not known. Who `has_eyes` needs room for images.
    """
    sent = {name: value for name, value in (request or {}).items() if value is not None}
    places, ignored = _sort_values({**model, **sent})
    limits = places["limits"]
    asked = limits.pop("context_length", None)
    limits["context_length"] = _context_length(
        asked,
        default_context_length,
        trained_context_length,
        _MIN_SEEING_CONTEXT_LENGTH if has_eyes else _MIN_CONTEXT_LENGTH,
    )
    limits["max_tokens"] = max(-1, limits.get("max_tokens", -1))
    return ResolvedOptions(
        sampling=Sampling(seed=_seed(places["sampling"]), **places["sampling"]),
        limits=Limits(**limits),
        stop=tuple(places["stop"].get("", ())),
        wanted_context_length=None if asked is None else limits["context_length"],
        ignored=tuple(name for name in ignored if name in sent),
    )
