"""Which architectures MLX can be given: one mapping each, listed here and nowhere else."""

from __future__ import annotations

from converters.architectures.experts import Experts
from converters.architectures.model import ModelShape
from converters.errors import Unsupported
from converters.targets.mlx.models import (
    command_r,
    gemma,
    glm4,
    granite,
    llama,
    mistral3,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    smollm3,
    starcoder2,
)
from converters.targets.mlx.models.family import Family, check

FAMILIES: dict[str, Family] = {
    "cohere2": command_r.WINDOWED,
    "command-r": command_r.FAMILY,
    "gemma": gemma.GEMMA,
    "gemma2": gemma.GEMMA2,
    "gemma3": gemma.GEMMA3,
    "glm4": glm4.FAMILY,
    "granite": granite.FAMILY,
    "llama": llama.FAMILY,
    "mistral3": mistral3.FAMILY,
    "olmo2": olmo2.FAMILY,
    "phi3": phi3.FAMILY,
    "qwen2": qwen2.FAMILY,
    "qwen3": qwen3.FAMILY,
    "smollm3": smollm3.FAMILY,
    "starcoder2": starcoder2.FAMILY,
}
# Those whose blocks have experts.
MIXTURES: dict[str, Family] = {
    "granite": granite.MIXTURE,
    "granitemoe": granite.MIXTURE,
    "llama": llama.MIXTURE,
    "qwen2moe": qwen2.MIXTURE,
    "qwen3moe": qwen3.MIXTURE,
}


def family_of(model: ModelShape) -> Family:
    """Raises Unsupported where mlx-lm has no such model, or one that lacks what this file needs."""
    has_experts = any(isinstance(block.feed_forward, Experts) for block in model.blocks)
    family = (MIXTURES if has_experts else FAMILIES).get(model.architecture)
    if family is None:
        kind = " with experts" if has_experts else ""
        raise Unsupported(
            f"the architecture {model.architecture!r}{kind} is not supported on MLX yet"
        )
    check(model, family)
    return family
