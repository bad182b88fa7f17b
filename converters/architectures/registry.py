"""Which architectures there are: one file each, listed here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

from converters.architectures import (
    afmoe,
    apertus,
    arcee,
    bert,
    chatglm,
    cohere2,
    command_r,
    deepseek2,
    dots1,
    ernie4_5,
    exaone,
    exaone4,
    falcon,
    gemma,
    gemma2,
    gemma3,
    gemma3n,
    gemma_embedding,
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
    olmo2,
    olmoe,
    phi2,
    phi3,
    qwen2,
    qwen2moe,
    qwen3,
    qwen3moe,
    qwen35,
    seed_oss,
    smollm3,
    stablelm,
    starcoder2,
)
from converters.architectures.header import Header
from converters.architectures.model import ModelShape
from converters.errors import MalformedFile, Unsupported
from converters.gguf import GgufFile

ARCHITECTURES: dict[str, Callable[[Header], ModelShape]] = {
    "afmoe": afmoe.describe,
    "apertus": apertus.describe,
    "arcee": arcee.describe,
    "bailingmoe2": dots1.describe,
    "bert": bert.describe,
    "chatglm": chatglm.describe,
    "cohere2": cohere2.describe,
    "command-r": command_r.describe,
    "deepseek2": deepseek2.describe,
    "dots1": dots1.describe,
    "ernie4_5": ernie4_5.describe,
    "ernie4_5-moe": ernie4_5.describe,
    "exaone": exaone.describe,
    "exaone4": exaone4.describe,
    "falcon": falcon.describe,
    "gemma": gemma.describe,
    "gemma-embedding": gemma_embedding.describe,
    "gemma2": gemma2.describe,
    "gemma3": gemma3.describe,
    "gemma3n": gemma3n.describe,
    "glm4": glm4.describe,
    "glm4moe": glm4moe.describe,
    "gpt-oss": gpt_oss.describe,
    "gptneox": gptneox.describe,
    "granite": granite.describe,
    "granitehybrid": granitehybrid.describe,
    "granitemoe": granite.describe,
    "hunyuan-dense": hunyuan.describe,
    "hunyuan-moe": hunyuan.describe,
    "internlm2": llama.describe,
    "jina-bert-v2": bert.describe,
    "lfm2": lfm2.describe,
    "lfm2moe": lfm2.describe,
    "llama": llama.describe,
    "minicpm": granite.describe_minicpm,
    "mistral3": mistral3.describe,
    "nemotron": nemotron.describe,
    "nomic-bert": bert.describe,
    "nomic-bert-moe": bert.describe,
    "olmo2": olmo2.describe,
    "olmoe": olmoe.describe,
    "phi2": phi2.describe,
    "phi3": phi3.describe,
    "qwen2": qwen2.describe,
    "qwen2moe": qwen2moe.describe,
    "qwen2vl": qwen2.describe,
    "qwen3": qwen3.describe,
    "qwen35": qwen35.describe,
    "qwen35moe": qwen35.describe,
    "qwen3next": qwen35.describe,
    "qwen3moe": qwen3moe.describe,
    "qwen3vl": qwen3.describe,
    "qwen3vlmoe": qwen3moe.describe,
    "seed_oss": seed_oss.describe,
    "smollm3": smollm3.describe,
    "stablelm": stablelm.describe,
    "starcoder2": starcoder2.describe,
}


def describe(file: GgufFile) -> ModelShape:
    """The model in the file. Raises Unsupported by name, MalformedFile for what does not add up."""
    if not file.architecture:
        raise MalformedFile("the metadata key general.architecture is missing")
    if file.architecture not in ARCHITECTURES:
        raise Unsupported(f"the architecture {file.architecture!r} is not supported yet")
    return ARCHITECTURES[file.architecture](Header(file))
