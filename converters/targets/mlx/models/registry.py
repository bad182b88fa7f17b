"""Which architectures MLX can be given: one mapping each, listed here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

from converters.architectures.experts import Experts
from converters.architectures.model import ModelShape
from converters.errors import Unsupported
from converters.targets.mlx.models import (
    afmoe,
    apertus,
    command_r,
    deepseek2,
    dots1,
    encoder,
    ernie4_5,
    exaone,
    exaone4,
    gemma,
    gemma3n,
    glm4,
    glm4moe,
    gpt_oss,
    gptneox,
    granite,
    granitehybrid,
    hunyuan,
    lfm2,
    llama,
    mistral3,
    nemotron,
    nemotron_h,
    olmo2,
    phi2,
    phi3,
    qwen2,
    qwen3,
    qwen35,
    seed_oss,
    smollm3,
    stablelm,
    starcoder2,
)
from converters.targets.mlx.models.family import Family, check

FAMILIES: dict[str, Family] = {
    "apertus": apertus.FAMILY,
    "cohere2": command_r.WINDOWED,
    "command-r": command_r.FAMILY,
    "ernie4_5": ernie4_5.FAMILY,
    "exaone": exaone.FAMILY,
    "exaone4": exaone4.FAMILY,
    "gemma": gemma.GEMMA,
    "gemma2": gemma.GEMMA2,
    "gemma3": gemma.GEMMA3,
    "gemma3n": gemma3n.FAMILY,
    "glm4": glm4.FAMILY,
    "gptneox": gptneox.FAMILY,
    "granite": granite.FAMILY,
    "granitehybrid": granitehybrid.FAMILY,
    "hunyuan-dense": hunyuan.FAMILY,
    "internlm2": llama.FAMILY,
    "lfm2": lfm2.FAMILY,
    "llama": llama.FAMILY,
    "minicpm": granite.FAMILY,
    "mistral3": mistral3.FAMILY,
    "nemotron": nemotron.FAMILY,
    "nemotron_h": nemotron_h.FAMILY,
    "phi2": phi2.FAMILY,
    "phi3": phi3.FAMILY,
    "qwen2": qwen2.FAMILY,
    "qwen2vl": qwen2.FAMILY,
    "qwen3": qwen3.FAMILY,
    "qwen35": qwen35.FAMILY,
    "qwen3vl": qwen3.FAMILY,
    "seed_oss": seed_oss.FAMILY,
    "smollm3": smollm3.FAMILY,
    "stablelm": stablelm.FAMILY,
    "starcoder2": starcoder2.FAMILY,
}
# Those whose blocks have experts.
MIXTURES: dict[str, Family] = {
    "afmoe": afmoe.FAMILY,
    "bailingmoe2": dots1.BAILING,
    "dots1": dots1.DOTS1,
    "ernie4_5-moe": ernie4_5.MIXTURE,
    "glm4moe": glm4moe.FAMILY,
    "gpt-oss": gpt_oss.FAMILY,
    "granite": granite.MIXTURE,
    "granitehybrid": granitehybrid.MIXTURE,
    "granitemoe": granite.MIXTURE,
    "lfm2moe": lfm2.MIXTURE,
    "llama": llama.MIXTURE,
    "nemotron_h": nemotron_h.MIXTURE,
    "nemotron_h_moe": nemotron_h.MIXTURE,
    "olmoe": olmo2.MIXTURE,
    "qwen2moe": qwen2.MIXTURE,
    "qwen35moe": qwen35.MIXTURE,
    "qwen3moe": qwen3.MIXTURE,
    "qwen3next": qwen35.MIXTURE,
    "qwen3vlmoe": qwen3.MIXTURE,
}
# Those whose family is a question of more than that.
CHOICES: dict[str, Callable[[ModelShape], Family]] = {
    "deepseek2": deepseek2.family_of,
    "olmo2": olmo2.family_of,
}


def family_of(model: ModelShape) -> Family:
    """Raises Unsupported where mlx-lm has no such model, or one that lacks what this file needs."""
    family = _family(model)
    if family is None:
        kind = " with experts" if _has_experts(model) else ""
        raise Unsupported(
            f"the architecture {model.architecture!r}{kind} is not supported on MLX yet"
        )
    check(model, family)
    return family


def _family(model: ModelShape) -> Family | None:
    if model.encoder:
        return encoder.family_of(model)
    if choose := CHOICES.get(model.architecture):
        return choose(model)
    return (MIXTURES if _has_experts(model) else FAMILIES).get(model.architecture)


def _has_experts(model: ModelShape) -> bool:
    return any(isinstance(block.feed_forward, Experts) for block in model.blocks)
