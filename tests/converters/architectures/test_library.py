"""Files as Ollama's library has them are planned as the ones they were made from."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from converters.architectures.library import library_form
from converters.architectures.registry import describe
from converters.gguf import GgufFile, TensorInfo, Value
from converters.plan import plan
from tests.converters.random_headers import random_header
from tests.models.random_architectures import ARCHITECTURES


def published(
    header: GgufFile, old: str, new: str, names: dict[str, str], keys: dict[str, str] | None = None
) -> GgufFile:
    """The header with architecture `old` called `new`, and parts of names and keys replaced."""

    def told(text: str, words: dict[str, str]) -> str:
        for word, other in words.items():
            text = text.replace(word, other)
        return text

    metadata: dict[str, Value] = {
        told(key.replace(f"{old}.", f"{new}."), keys or {}): value
        for key, value in header.metadata.items()
    }
    tensors = tuple(replace(each, name=told(each.name, names)) for each in header.tensors)
    return replace(header, metadata=metadata | {"general.architecture": new}, tensors=tensors)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_files_of_llama_cpp_are_left_as_they_are(architecture: str):
    header = random_header(architecture)
    assert library_form(header) is header


def test_gpt_oss():
    header = random_header("gpt-oss")
    names = {
        "attn_output": "attn_out",
        "attn_sinks.weight": "attn_sinks",
        "post_attention_norm": "ffn_norm",
    }
    found = library_form(published(header, "gpt-oss", "gptoss", names))
    assert describe(found) == describe(header)
    assert found.metadata["tokenizer.ggml.pre"] == "gpt-4o"


def test_gemma3():
    header = random_header("gemma3")
    keys = {"rope.freq_base": "rope.global.freq_base", "layer_norm_rms_epsilon": "unknown"}
    metadata = {"gemma3.rope.local.freq_base": 20000.0, "gemma3.context_length": 131072}
    foreign = published(header, "gemma3", "gemma3", {}, keys)
    for key in ("gemma3.rope.scaling.type", "gemma3.rope.scaling.factor"):
        del foreign.metadata[key]
    found = describe(library_form(replace(foreign, metadata=foreign.metadata | metadata)))
    assert found.epsilon == 1e-6
    assert found.rope["global"] == describe(header).rope["global"]
    assert found.rope["local"].base == 20000.0


def test_embedding_gemma():
    header = random_header("gemma-embedding")
    names = {"dense_2": "dense.0", "dense_3": "dense.1", "output_norm": "norm"}
    found = library_form(published(header, "gemma-embedding", "gemma3", names))
    described = describe(found)
    assert described.encoder == describe(header).encoder
    assert not described.encoder or not described.encoder.is_causal
    # The published pattern is not this model's; llama.cpp's own holds.
    assert [each.mixer.window for each in described.blocks] == [16, 16]  # pyright: ignore


def test_gemma3n_with_tokens_of_images():
    """The first of its two tables has rows for them, the other one has not."""
    header = random_header("gemma3n", blocks=5)
    tokens = ["a", "<0x0A>", "<unused7>", *(f"t{place}" for place in range(297))]
    kinds = np.full(300, 3, np.int32)
    metadata: dict[str, Value] = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.model": "gpt2",
    }
    tensors = tuple(
        replace(each, shape=(290, each.shape[1]), nbytes=each.nbytes * 290 // 300)
        if each.name == "per_layer_token_embd.weight"
        else each
        for each in header.tensors
    )
    foreign = replace(header, metadata=header.metadata | metadata, tensors=tensors)
    found = library_form(foreign)
    assert found.metadata["tokenizer.ggml.model"] == "llama"
    assert found.metadata["tokenizer.ggml.tokens"] == tokens[:290]
    assert list(np.asarray(found.metadata["tokenizer.ggml.token_type"])[:4]) == [3, 6, 1, 3]
    for target in ("onnx-cpu", "mlx"):
        assert plan(foreign, target).model.vocabulary == 290


def test_mistral3():
    header = random_header("mistral3")
    keys = {
        "attention.temperature_scale": "rope.scaling_beta",
        "yarn_log_multiplier": "mscale_all_dim",
    }
    found = library_form(published(header, "mistral3", "mistral3", {}, keys))
    assert describe(found) == describe(header)
    assert found.metadata["tokenizer.ggml.pre"] == "tekken"


def test_olmo3():
    header = random_header("olmo3")
    assert describe(library_form(published(header, "olmo2", "olmo3", {}))) == describe(header)


def test_qwen25vl_with_its_tower():
    header = random_header("qwen2vl")
    keys = {"rope.dimension_sections": "rope.mrope_section"}
    tower = TensorInfo("v.blk.0.attn_q.weight", (4, 4), "F16", 1 << 30, 32)
    foreign = published(header, "qwen2vl", "qwen25vl", {}, keys)
    foreign = replace(foreign, tensors=(*foreign.tensors, tower))
    assert describe(library_form(foreign)) == describe(header)
    for target in ("onnx-cpu", "mlx"):
        assert plan(foreign, target).skipped == (tower.name,)


def test_nemotron_3_super():
    header = random_header("nemotron_h_moe-latent")
    names = {"ffn_latent_down": "ffn_latent_in", "ffn_latent_up": "ffn_latent_out"}
    head = TensorInfo("mtp.layers.0.eh_proj.weight", (4, 4), "F16", 1 << 30, 32)
    foreign = published(header, "nemotron_h_moe", "nemotron_h_moe", names)
    del foreign.metadata["nemotron_h_moe.moe_latent_size"]
    foreign = replace(foreign, tensors=(*foreign.tensors, head))
    assert describe(library_form(foreign)) == describe(header)
    assert plan(foreign, "onnx-cpu").skipped == (head.name,)


@pytest.mark.parametrize("architecture", ["nemotron_h", "nemotron_h_moe"])
def test_nemotron_3_with_its_towers(architecture: str):
    header = random_header(architecture)
    towers = tuple(
        TensorInfo(f"{part}.blk.0.attn_q.weight", (4, 4), "F16", 1 << 30, 32) for part in "av"
    )
    foreign = published(header, architecture, "nemotron_h_omni", {})
    foreign = replace(foreign, tensors=(*foreign.tensors, *towers))
    assert describe(library_form(foreign)) == describe(header)
    for target in ("onnx-cpu", "mlx"):
        assert plan(foreign, target).skipped == tuple(each.name for each in towers)


def test_glm_4_7_flash():
    header = random_header("deepseek2-sigmoid")
    foreign = published(header, "deepseek2", "glm4moelite", {})
    for part in ("head_count_kv", "key_length", "value_length"):
        foreign.metadata[f"glm4moelite.attention.{part}"] = 20
    del foreign.metadata["glm4moelite.expert_gating_func"]
    found = library_form(foreign)
    assert describe(found) == describe(header)
    assert found.metadata["tokenizer.ggml.pre"] == "glm4"


def test_lfm2():
    header = random_header("lfm2")
    names = {"token_embd_norm": "output_norm"}
    foreign = published(header, "lfm2", "lfm2", names)
    foreign.metadata["tokenizer.ggml.model"] = "gpt2"
    found = library_form(foreign)
    assert found.metadata["tokenizer.ggml.pre"] == "lfm2"
    assert plan(found, "mlx").model.blocks == plan(header, "mlx").model.blocks


def test_twice_is_as_once():
    header = published(random_header("gpt-oss"), "gpt-oss", "gptoss", {})
    once = library_form(header)
    assert library_form(once) == once


@pytest.mark.parametrize("architecture", ["qwen3vl", "qwen3vlmoe"])
def test_qwen3vl_with_its_tower_inside(architecture: str):
    header = random_header(architecture, head_size=128)
    left_out = ("rope.dimension_sections", "n_deepstack_layers")
    metadata = {key: value for key, value in header.metadata.items() if not key.endswith(left_out)}
    taps = {f"{architecture}.vision.deepstack_visual_indexes": np.array([0, 1], np.int32)}
    found = describe(library_form(replace(header, metadata=metadata | taps)))
    assert found.rope["global"].sections == (24, 20, 20)
    assert found.deepstack == 2
    assert found.blocks == describe(header).blocks
