"""Files as Ollama's library publishes them, told in llama.cpp's words: other keys, other names.

Only names and keys change; tensor data stays where it is. A file that is as llama.cpp writes them
comes through untouched. Source: Ollama's `llama/compat/llama-ollama-compat.cpp`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from msgspec.structs import replace

from converters.gguf import GgufFile, Value, integer_value

Metadata = dict[str, Value]
# Files of this context or longer were trained with positions stretched 8 times, and may not say so.
GEMMA3_STRETCHED_CONTEXT = 131072
GEMMA3_STRETCH = 8.0
# Of the pairs in a head of this size, those that turn with time, row and column.
QWEN3VL_HEAD_SIZE, QWEN3VL_SECTIONS = 128, (24, 20, 20, 0)
# An `expert_gating_func`.
SIGMOID = 2
# Kinds in `tokenizer.ggml.token_type`.
NORMAL, BYTE = 1, 6
_BYTE_TOKEN = re.compile(r"<0x..>")
_EXPERT_COUNTS = ("expert_count", "expert_used_count")
_GEMMA3N_TABLES = ("token_embd.weight", "per_layer_token_embd.weight")


def library_form(file: GgufFile) -> GgufFile:
    """The same file under llama.cpp's names; applying it twice changes nothing more."""
    if file.architecture == "gemma3" and _has(file, "dense.0.weight"):
        return _embedding_gemma(file)
    rule = _RULES.get(file.architecture)
    return rule(file) if rule else file


def _gpt_oss(file: GgufFile) -> GgufFile:
    def named(name: str) -> str:
        name = name.replace(".attn_out.", ".attn_output.").replace(
            ".ffn_norm.", ".post_attention_norm."
        )
        return f"{name}.weight" if name.endswith(".attn_sinks") else name

    metadata = _as_architecture(file.metadata, "gptoss", "gpt-oss")
    metadata.setdefault("gpt-oss.rope.scaling.type", "yarn")
    return _renamed(replace(file, metadata=_with_pre(metadata, "gpt-4o")), named)


def _olmo3(file: GgufFile) -> GgufFile:
    return replace(file, metadata=_as_architecture(file.metadata, "olmo3", "olmo2"))


def _embedding_gemma(file: GgufFile) -> GgufFile:
    """EmbeddingGemma under the name of the model it was made from."""
    names = {
        "dense.0.weight": "dense_2.weight",
        "dense.1.weight": "dense_3.weight",
        "norm.weight": "output_norm.weight",
    }
    metadata = _as_architecture(_gemma3(file).metadata, "gemma3", "gemma-embedding")
    for key in ("attention.causal", "attention.sliding_window_pattern"):
        metadata.pop(f"gemma-embedding.{key}", None)
    return _renamed(replace(file, metadata=metadata), lambda name: names.get(name, name))


def _gemma3(file: GgufFile) -> GgufFile:
    metadata = dict(file.metadata)
    _copy(metadata, "gemma3.rope.global.freq_base", "gemma3.rope.freq_base")
    _copy(metadata, "gemma3.rope.local.freq_base", "gemma3.rope.freq_base_swa")
    if metadata == file.metadata and "gemma3.attention.layer_norm_rms_epsilon" in metadata:
        return file
    metadata.setdefault("gemma3.attention.layer_norm_rms_epsilon", 1e-6)
    metadata.setdefault("gemma3.rope.freq_base", 1000000.0)
    length = metadata.get("gemma3.context_length")
    if isinstance(length, int) and length >= GEMMA3_STRETCHED_CONTEXT:
        metadata.setdefault("gemma3.rope.scaling.type", "linear")
        metadata.setdefault("gemma3.rope.scaling.factor", GEMMA3_STRETCH)
    return replace(file, metadata=metadata)


def _gemma3n(file: GgufFile) -> GgufFile:
    """Its tokens include images' and sounds', which only the first of the two tables has rows for."""
    rows = {each.name: each.shape[0] for each in file.tensors if each.name in _GEMMA3N_TABLES}
    if len(set(rows.values())) < len(_GEMMA3N_TABLES):
        return file
    count, metadata = min(rows.values()), file.metadata | {"tokenizer.ggml.model": "llama"}
    for key in ("tokens", "scores", "token_type"):
        value = metadata.get(f"tokenizer.ggml.{key}")
        if isinstance(value, list | np.ndarray):
            metadata[f"tokenizer.ggml.{key}"] = value[:count]
    tokens, kinds = (metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    if isinstance(tokens, list) and isinstance(kinds, np.ndarray) and len(tokens) == len(kinds):
        metadata["tokenizer.ggml.token_type"] = np.array(
            [_kind_of(str(token), kind) for token, kind in zip(tokens, kinds, strict=True)],
            kinds.dtype,
        )
    return replace(file, metadata=metadata)


def _kind_of(token: str, kind: int) -> int:
    if _BYTE_TOKEN.fullmatch(token):
        return BYTE
    return NORMAL if token.startswith("<unused") else kind


def _mistral3(file: GgufFile) -> GgufFile:
    metadata = dict(file.metadata)
    _copy(metadata, "mistral3.rope.scaling.beta_fast", "mistral3.rope.scaling.yarn_beta_fast")
    _copy(metadata, "mistral3.rope.scaling.beta_slow", "mistral3.rope.scaling.yarn_beta_slow")
    multiplier = "mistral3.rope.scaling.yarn_log_multiplier"
    _copy(metadata, "mistral3.rope.scaling.mscale_all_dim", multiplier)
    _copy(metadata, "mistral3.rope.scaling_beta", "mistral3.attention.temperature_scale")
    if metadata == file.metadata:
        return file
    return replace(file, metadata=_with_pre(metadata, "tekken"))


def _qwen25vl(file: GgufFile) -> GgufFile:
    """Text and images of Qwen 2.5 VL in one file."""
    metadata = _as_architecture(file.metadata, "qwen25vl", "qwen2vl")
    _copy(metadata, "qwen2vl.rope.mrope_section", "qwen2vl.rope.dimension_sections")
    return replace(file, metadata=metadata)


def _qwen3vl(file: GgufFile) -> GgufFile:
    """Text and images of Qwen 3 VL in one file, which does not say what all of them have."""
    prefix = file.architecture
    taps = file.metadata.get(f"{prefix}.vision.deepstack_visual_indexes")
    metadata = dict(file.metadata)
    if isinstance(taps, np.ndarray):
        metadata.setdefault(f"{prefix}.n_deepstack_layers", len(taps))
    head_size = integer_value(file.metadata, f"{prefix}.attention.key_length", 0)
    if head_size == QWEN3VL_HEAD_SIZE and taps is not None:
        sections = np.array(QWEN3VL_SECTIONS, np.int32)
        metadata.setdefault(f"{prefix}.rope.dimension_sections", sections)
    return file if metadata.keys() == file.metadata.keys() else replace(file, metadata=metadata)


def _glm4moelite(file: GgufFile) -> GgufFile:
    """GLM 4.7 Flash: its keys tell heads as they were before the latent was absorbed; shapes decide."""
    metadata = _as_architecture(file.metadata, "glm4moelite", "deepseek2")
    metadata.setdefault("deepseek2.expert_gating_func", SIGMOID)
    return replace(file, metadata=_with_pre(metadata, "glm4"))


def _lfm2(file: GgufFile) -> GgufFile:
    """The final norm has its usual name there, which `lfm2` knows too."""
    if file.metadata.get("tokenizer.ggml.model") != "gpt2":
        return file
    metadata = _with_pre(file.metadata, "lfm2")
    return file if metadata == file.metadata else replace(file, metadata=metadata)


def _nemotron_moe(file: GgufFile) -> GgufFile:
    """The ways into the experts' latent and out of it have other names there."""
    if not any(".ffn_latent_in." in tensor.name for tensor in file.tensors):
        return file

    def named(name: str) -> str:
        name = name.replace(".ffn_latent_in.", ".ffn_latent_down.")
        return name.replace(".ffn_latent_out.", ".ffn_latent_up.")

    return _renamed(file, named)


def _nemotron_omni(file: GgufFile) -> GgufFile:
    """Text, images and sounds of Nemotron 3 in one file."""
    old = file.architecture
    has_experts = any(file.metadata.get(f"{old}.{key}") for key in _EXPERT_COUNTS)
    new = "nemotron_h_moe" if has_experts else "nemotron_h"
    return _nemotron_moe(replace(file, metadata=_as_architecture(file.metadata, old, new)))


_RULES: dict[str, Callable[[GgufFile], GgufFile]] = {
    "gptoss": _gpt_oss,
    "olmo3": _olmo3,
    "gemma3": _gemma3,
    "gemma3n": _gemma3n,
    "glm4moelite": _glm4moelite,
    "lfm2": _lfm2,
    "mistral3": _mistral3,
    "nemotron_h_moe": _nemotron_moe,
    "nemotron_h_omni": _nemotron_omni,
    "qwen25vl": _qwen25vl,
    "qwen3vl": _qwen3vl,
    "qwen3vlmoe": _qwen3vl,
}


def _has(file: GgufFile, name: str) -> bool:
    return any(tensor.name == name for tensor in file.tensors)


def _as_architecture(metadata: Metadata, old: str, new: str) -> Metadata:
    """A copy whose architecture and whose keys' first word are `new`."""
    prefix = re.compile(rf"^{re.escape(old)}\.")
    renamed = {prefix.sub(f"{new}.", key): value for key, value in metadata.items()}
    return renamed | {"general.architecture": new}


def _with_pre(metadata: Metadata, pre: str) -> Metadata:
    """A generic pre-tokenizer gives way to the model's own."""
    key = "tokenizer.ggml.pre"
    return metadata | ({key: pre} if metadata.get(key, "") in ("", "default") else {})


def _copy(metadata: Metadata, source: str, target: str) -> None:
    if source in metadata:
        metadata.setdefault(target, metadata[source])


def _renamed(file: GgufFile, named: Callable[[str], str]) -> GgufFile:
    tensors = tuple(replace(tensor, name=named(tensor.name)) for tensor in file.tensors)
    return replace(file, tensors=tensors)
