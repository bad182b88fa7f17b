"""Folders that are imported, and those that are refused: by name, before a byte is written."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import gguf
import numpy as np
import pytest

from converters.artifact import MADE_GGUF
from converters.errors import ConversionError, MalformedFile, NoSpace, Unsupported
from converters.imports import weights
from tests.models.hugging_face import drawn, encoded, make_folder, safetensors_bytes
from tests.models.hugging_face_families import FAMILIES
from tests.parity.imported import imported, imported_folder


def arrays_of(path: pathlib.Path) -> dict[str, Any]:
    reader = gguf.GGUFReader(path)
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in reader.tensors
    }


def sources(family: str) -> dict[str, Any]:
    spec = FAMILIES[family]
    return {weight[0]: drawn(weight) for weight in spec.weights(spec.config)}


def test_every_number_is_where_it_belongs(tmp_path: pathlib.Path) -> None:
    _, path = imported(tmp_path, "llama")
    found, given = arrays_of(path), sources("llama")
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output.weight": "lm_head.weight",
        "blk.1.attn_v.weight": "model.layers.1.self_attn.v_proj.weight",
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
        "blk.0.attn_norm.weight": "model.layers.0.input_layernorm.weight",
        "blk.0.ffn_norm.weight": "model.layers.0.post_attention_layernorm.weight",
    }
    for ours, theirs in pairs.items():
        np.testing.assert_array_equal(found[ours], given[theirs])
    query = given["model.layers.1.self_attn.q_proj.weight"].reshape(4, 2, 32, 256)
    swapped = query.swapaxes(1, 2).reshape(256, 256)
    np.testing.assert_array_equal(found["blk.1.attn_q.weight"], swapped)
    assert len(found) == len(given)


def test_slices_make_no_difference(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "hf", "gemma3", dtype="BF16")
    whole = imported_folder(folder, tmp_path / "whole")
    monkeypatch.setattr(weights, "SLICE_BYTES", 1 << 10)
    assert imported_folder(folder, tmp_path / "sliced").digest == whole.digest
    sharded = make_folder(tmp_path / "sharded" / "hf", "gemma3", dtype="BF16", shards=4)
    assert imported_folder(sharded, tmp_path / "shards").digest == whole.digest


def test_norms_are_shifted_in_full_precision(tmp_path: pathlib.Path) -> None:
    _, path = imported(tmp_path, "gemma2", dtype="BF16")
    given = sources("gemma2")["model.layers.0.input_layernorm.weight"]
    rounded = np.frombuffer(encoded(given, "BF16"), "<u2").astype(np.uint32) << 16
    exact = rounded.view(np.float32) + np.float32(1)
    np.testing.assert_array_equal(arrays_of(path)["blk.0.attn_norm.weight"], exact)


def test_a_multimodal_file_gives_its_text_model(tmp_path: pathlib.Path) -> None:
    plain = make_folder(tmp_path / "hf", "gemma3")
    config = FAMILIES["gemma3"].config
    tensors = {
        f"language_model.{weight[0]}": ("F32", weight[1], encoded(drawn(weight), "F32"))
        for weight in FAMILIES["gemma3"].weights(config)
    }
    tensors["vision_tower.patch.weight"] = ("F32", (1,), b"\0" * 4)
    whole = make_folder(tmp_path / "whole" / "hf", "gemma3")
    (whole / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": config}
    (whole / "config.json").write_text(json.dumps(outer))
    digests = {imported_folder(folder, folder.with_name("out")).digest for folder in (plain, whole)}
    assert len(digests) == 1


CONFIGS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("llama", {"architectures": ["OPTForCausalLM"]}, Unsupported,
     'unsupported architecture "OPTForCausalLM"'),
    ("llama", {"architectures": [], "model_type": ""}, MalformedFile, "names no architecture"),
    ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, Unsupported,
     "quantised already .gptq."),
    ("llama", {"quantization": {"group_size": 64, "bits": 4}}, MalformedFile,
     "no tensor has scales"),
    ("llama", {"hidden_act": "relu"}, Unsupported, "hidden_act 'relu'"),
    ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, Unsupported,
     "rope scaling 'dynamic'"),
    ("llama", {"num_attention_heads": 2}, MalformedFile, "128 rows for 2 heads of 128"),
    ("llama", {"num_attention_heads": "four"}, MalformedFile, "num_attention_heads"),
    ("llama", {"num_attention_heads": 1e400}, MalformedFile, "num_attention_heads"),
    ("llama", {"num_hidden_layers": 1}, MalformedFile, "beyond the model's 1 blocks"),
    ("llama", {"num_hidden_layers": 3}, Unsupported, "'blk.2"),
    ("llama3", {"tie_word_embeddings": False}, MalformedFile, "'lm_head.weight' is missing"),
    ("qwen2", {"use_sliding_window": True}, Unsupported, "use_sliding_window"),
    ("qwen3moe", {"norm_topk_prob": False}, Unsupported, "norm_topk_prob"),
    ("gemma2", {"query_pre_attn_scalar": 224}, Unsupported, "query_pre_attn_scalar 224"),
    ("gemma3", {"layer_types": ["full_attention", "sideways"]}, Unsupported, "layer_types"),
    ("gemma3", {"use_bidirectional_attention": True}, Unsupported, "use_bidirectional_attention"),
    ("phi3-long", {"rope_scaling": {"type": "longrope", "long_factor": [1.0],
                                    "short_factor": [1.0]}}, MalformedFile, "a list of 32"),
    ("bert", {"position_embedding_type": "relative_key"}, Unsupported, "relative_key"),
    ("bert", {"hidden_act": "gelu_new"}, Unsupported, "gelu_new"),
    ("nomic-bert", {"moe_every_n_layers": 2}, Unsupported, "moe_every_n_layers"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "config", "error", "text"), CONFIGS)
def test_what_cannot_be_is_refused_by_name(
    tmp_path: pathlib.Path, family: str, config: dict[str, Any], error: type[Exception], text: str
) -> None:
    folder = make_folder(tmp_path / "hf", family)
    (folder / "config.json").write_text(json.dumps(FAMILIES[family].config | config))
    with pytest.raises(error, match=text):
        imported_folder(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_tensor_without_a_place_is_refused(tmp_path: pathlib.Path) -> None:
    folder = make_folder(tmp_path / "hf", "llama")
    extra = {"model.layers.0.self_attn.sinks": ("F32", (4,), b"\0" * 16)}
    (folder / "model-extra.safetensors").write_bytes(safetensors_bytes(extra))
    with pytest.raises(Unsupported, match=r"self_attn\.sinks' has no place"):
        imported_folder(folder, tmp_path / "out")


def test_codes_are_not_taken_for_numbers(tmp_path: pathlib.Path) -> None:
    folder = make_folder(tmp_path / "hf", "llama")
    path = folder / "model.safetensors"
    data = path.read_bytes().replace(b'"F32", "shape": [256, 256]', b'"I32", "shape": [256, 256]')
    path.write_bytes(data)
    with pytest.raises(Unsupported, match="is stored as I32"):
        imported_folder(folder, tmp_path / "out")


def rename(folder: pathlib.Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("pytorch_model.bin", Unsupported, "pytorch_model.bin holds pickled weights"),
        ("weights.pth", Unsupported, "weights.pth holds pickled weights"),
        ("tf_model.h5", Unsupported, "only safetensors"),
        ("notes.txt", MalformedFile, "no safetensors files"),
        ("consolidated.safetensors", Unsupported, "Mistral's own names"),
    ],
)
def test_other_weights_are_refused(
    tmp_path: pathlib.Path, name: str, error: type[Exception], text: str
) -> None:
    folder = make_folder(tmp_path / "hf", "llama")
    rename(folder, name)
    with pytest.raises(error, match=text):
        imported_folder(folder, tmp_path / "out")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_text_is_named(tmp_path: pathlib.Path, name: str) -> None:
    folder = make_folder(tmp_path / "hf", "llama")
    (folder / name).unlink()
    with pytest.raises(ConversionError, match=name):
        imported_folder(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("placed", "text"),
    [
        ("../../secret.safetensors", "no file beside it"),
        ("/etc/passwd", "no file beside it"),
        ("model-00009-of-00009.safetensors", "is not there"),
        ("config.json", "no file beside it"),
    ],
)
def test_the_index_names_files_beside_it(tmp_path: pathlib.Path, placed: str, text: str) -> None:
    folder = make_folder(tmp_path / "hf", "llama")
    index = {"weight_map": {"model.norm.weight": placed}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(MalformedFile, match=text):
        imported_folder(folder, tmp_path / "out")


def test_links_out_of_the_folder_are_refused(tmp_path: pathlib.Path) -> None:
    folder = make_folder(tmp_path / "hf", "llama")
    secret = tmp_path / "secret.json"
    (folder / "config.json").rename(secret)
    (folder / "config.json").symlink_to(secret)
    with pytest.raises(MalformedFile, match="leads out of the folder"):
        imported_folder(folder, tmp_path / "out")


def test_the_cache_of_hugging_face_is_a_tree_of_links(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "models--some--model"
    made = make_folder(tmp_path / "hf", "llama")
    (root / "blobs").mkdir(parents=True)
    snapshot = root / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in made.iterdir():
        path.rename(root / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert imported_folder(snapshot, tmp_path / "out").file_bytes > 1 << 20


def test_a_full_disk_leaves_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "hf", "llama")
    monkeypatch.setattr("converters.staging.SPARE_BYTES", 1 << 60)
    with pytest.raises(NoSpace, match="bytes beside"):
        imported_folder(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_file_that_shrinks_is_noticed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "hf", "llama")
    monkeypatch.setattr(
        "converters.made_gguf.check_space",
        lambda *_: (folder / "model.safetensors").write_bytes(b""),
    )
    with pytest.raises(MalformedFile, match="the file ends inside it"):
        imported_folder(folder, tmp_path / "out")
    assert not (tmp_path / "out" / MADE_GGUF).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_what_was_not_taken_over_is_told(tmp_path: pathlib.Path) -> None:
    folder = make_folder(tmp_path / "hf", "phi3")
    assert "sliding window of 2047" in imported_folder(folder, tmp_path / "out").notes[0]
