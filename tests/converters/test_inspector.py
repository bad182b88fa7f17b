"""What the inspector writes for whole files of each kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from converters.errors import MalformedFile
from converters.gguf import read_header
from converters.inspection import Inspection, arrays_path, read_inspection
from converters.inspector import describe, run_inspect
from tests.models.random_gguf import make_gguf

DIGEST = "ab" * 32


def inspected(source: Path, home: Path) -> Inspection:
    (home / "inspections").mkdir(parents=True, exist_ok=True)
    run_inspect(source, DIGEST, home / "inspections")
    inspection = read_inspection(home / "inspections" / f"{DIGEST}.json")
    assert inspection is not None
    return inspection


def written(
    path: Path, architecture: str, keys: dict[str, Any], *, has_tensor: bool = True
) -> Path:
    writer = GGUFWriter(path, architecture)
    for key, value in keys.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add.get(type(value), writer.add_string)(key, value)
    if has_tensor:
        writer.add_tensor("t", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def kind_of(folder: Path, architecture: str, keys: dict[str, Any], **more: bool) -> str:
    path = written(folder / "a.gguf", architecture, keys, **more)
    return describe(read_header(path), DIGEST).kind


def test_a_model_is_described(tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    make_gguf(source, types="Q4_K_M", blocks=2, embedding=256)
    inspection = inspected(source, tmp_path)
    header = read_header(source)
    assert inspection.digest == DIGEST and inspection.size == source.stat().st_size
    assert inspection.kind == "model" and inspection.architecture == "llama"
    assert inspection.parameter_count == sum(tensor.elements for tensor in header.tensors)
    assert (inspection.context_length, inspection.embedding_length) == (2048, 256)
    assert inspection.block_count == 2 and inspection.pooling_type is None
    assert not inspection.has_vision and not inspection.has_audio
    assert inspection.chat_template == header.metadata["tokenizer.chat_template"]
    assert "onnx" not in inspection.refusals and inspection.estimates["onnx"] > 0
    first = inspection.tensors[0]
    assert first.shape == header.tensors[0].shape[::-1]


def test_arrays_are_beside(tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    make_gguf(source)
    inspection = inspected(source, tmp_path)
    arrays = json.loads(arrays_path(tmp_path, DIGEST).read_bytes())
    header = read_header(source)
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert arrays["tokenizer.ggml.tokens"] == tokens
    assert inspection.metadata.keys() == header.metadata.keys()
    assert all(inspection.metadata[key] is None for key in arrays)
    assert np.array_equal(
        np.float32(arrays["tokenizer.ggml.scores"]),
        np.asarray(header.metadata["tokenizer.ggml.scores"]),
    )


def test_numbers_are_the_shortest_that_mean_the_same(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf", "llama", {"llama.attention.layer_norm_rms_epsilon": 1e-5})
    metadata = describe(read_header(path), DIGEST).metadata
    assert metadata["llama.attention.layer_norm_rms_epsilon"] == 1e-05


@pytest.mark.parametrize(
    ("architecture", "keys", "kind"),
    [
        ("llama", {"llama.block_count": 1}, "model"),
        ("llama", {"general.type": "adapter"}, "adapter"),
        ("clip", {"general.type": "mmproj"}, "projector"),
        ("clip", {"clip.has_vision_encoder": True}, "projector"),
        ("gemma3", {"gemma3.vision.block_count": 2}, "projector"),
        ("gemma3", {"gemma3.vision.block_count": 2, "gemma3.block_count": 1}, "model"),
    ],
)
def test_kinds(tmp_path: Path, architecture: str, keys: dict[str, Any], kind: str) -> None:
    assert kind_of(tmp_path, architecture, keys) == kind


def test_a_file_without_tensors_is_a_vocabulary(tmp_path: Path) -> None:
    assert kind_of(tmp_path, "llama", {}, has_tensor=False) == "vocabulary"


def test_senses(tmp_path: Path) -> None:
    def senses(architecture: str, keys: dict[str, Any]) -> tuple[bool, bool]:
        found = describe(read_header(written(tmp_path / "a.gguf", architecture, keys)), DIGEST)
        return found.has_vision, found.has_audio

    assert senses("llama", {"llama.block_count": 1}) == (False, False)
    both = {"gemma3.block_count": 1, "gemma3.vision.block_count": 2, "gemma3.audio.block_count": 1}
    assert senses("gemma3", both) == (True, True)
    audio = {"general.type": "projector", "clip.has_audio_encoder": True}
    assert senses("clip", audio) == (True, True)
    assert senses("clip", audio | {"clip.vision.projector_type": "gemma3nv"}) == (True, False)


def test_names_of_file_types_and_pooling(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    keys = {"general.file_type": 15, "bert.pooling_type": 2, "general.name": "A name"}
    found = describe(read_header(written(path, "bert", keys)), DIGEST)
    assert (found.file_type, found.pooling_type, found.name) == ("Q4_K_M", 2, "A name")
    found = describe(read_header(written(path, "bert", {"general.file_type": 999})), DIGEST)
    assert found.file_type == "unknown"


def test_what_cannot_be_converted_is_said(tmp_path: Path) -> None:
    keys = {"unheard-of.block_count": 1, "tokenizer.ggml.model": "llama"}
    path = written(tmp_path / "a.gguf", "unheard-of", keys)
    found = describe(read_header(path), DIGEST)
    assert "unheard-of" in found.refusals["onnx"] and "onnx" not in found.estimates


def test_an_unknown_tokenizer_is_a_refusal(tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    make_gguf(source)
    header = read_header(source)
    header.metadata["tokenizer.ggml.model"] = "rwkv"
    assert "'rwkv'" in describe(header, DIGEST).refusals["onnx"]


@pytest.mark.parametrize("digest", ["", "../up", "AB", "ab/cd", "g" * 64, "a" * 200])
def test_a_digest_is_hexadecimal(tmp_path: Path, digest: str) -> None:
    source = written(tmp_path / "a.gguf", "llama", {})
    with pytest.raises(MalformedFile, match="digest"):
        run_inspect(source, digest, tmp_path)


def test_nothing_is_left_of_a_failure(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"GGUF" + bytes(100))
    output = tmp_path / "output"
    output.mkdir()
    with pytest.raises(Exception, match="big-endian"):
        run_inspect(source, DIGEST, output)
    assert not list(output.iterdir())


def test_a_second_inspection_replaces_the_first(tmp_path: Path) -> None:
    source = tmp_path / "a.gguf"
    written(source, "llama", {"general.name": "one"})
    assert inspected(source, tmp_path).name == "one"
    written(source, "llama", {"general.name": "two"})
    assert inspected(source, tmp_path).name == "two"
    assert len(list((tmp_path / "inspections").iterdir())) == 2
