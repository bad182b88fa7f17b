"""Cutting one model among ranks: which way, and where the ranks may be.

Tensor: every rank holds a slice of every matrix and all heads are shared out. Pipeline: every rank
holds some of the blocks. What a model's module offers, and what its numbers allow, decides.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx import nn

from backends.types import EngineError

SPLITS = ("auto", "tensor", "pipeline")


def check_hosts(addresses: Sequence[str]) -> None:
    """What ranks say to each other is neither signed nor hidden. Raises EngineError("unsupported")."""
    for address in addresses:
        host = address.rpartition(":")[0].strip("[]")
        try:
            found = ipaddress.ip_address(host)
        except ValueError:
            raise EngineError("unsupported", f"rank address {address!r} is no IP:PORT") from None
        if not found.is_private or found.is_unspecified:
            raise EngineError(
                "unsupported", f"ranks may only be on a private network, and {host} is not on one"
            )
        if not found.is_loopback:
            raise EngineError(
                "unsupported", f"ranks on other machines ({host}) are not started by this version"
            )


def plan_split(wanted: str, model: nn.Module, config: Mapping[str, Any], ranks: int) -> str:
    """Which way: "tensor" or "pipeline". Raises EngineError("unsupported") with the reasons against both."""
    obstacles = {
        "tensor": _tensor_obstacle(model, config, ranks),
        "pipeline": _pipeline_obstacle(model, config, ranks),
    }
    candidates = SPLITS[1:] if wanted == "auto" else (wanted,)
    for split in candidates:
        if not obstacles[split]:
            return split
    reasons = "; ".join(f"{split}: {obstacles[split]}" for split in candidates)
    raise EngineError("unsupported", f"this model cannot be split over {ranks} ranks ({reasons})")


def _tensor_obstacle(model: nn.Module, config: Mapping[str, Any], ranks: int) -> str:
    if not hasattr(model, "shard"):
        return f"{config.get('model_type')} has no way to do it"
    heads = int(config.get("num_attention_heads", 0))
    key_heads = int(config.get("num_key_value_heads") or heads)
    if heads % ranks or key_heads % ranks:
        return f"{heads} heads over {key_heads} for keys do not divide by {ranks}"
    quantization = config.get("quantization")
    group = int(quantization["group_size"]) if isinstance(quantization, Mapping) else 1
    for name in ("hidden_size", "intermediate_size"):
        size = int(config.get(name, 0))
        if size % (ranks * group):
            return f"{name} {size} does not divide by {ranks} groups of {group}"
    return ""


def _pipeline_obstacle(model: nn.Module, config: Mapping[str, Any], ranks: int) -> str:
    if not hasattr(getattr(model, "model", None), "pipeline"):
        return f"{config.get('model_type')} has no way to do it"
    blocks = int(config.get("num_hidden_layers", 0))
    return f"it has {blocks} blocks" if blocks < ranks else ""


def split_model(model: Any, split: str, group: mx.distributed.Group) -> None:
    """Keeps this rank's part; weights that are still lazy are read in part only."""
    try:
        if split == "tensor":
            model.shard(group)
        else:
            model.model.pipeline(group)
    except (ValueError, RuntimeError, AttributeError) as error:
        raise EngineError("load", f"the model could not be split: {error}") from error
