"""Folders of safetensors onto the shelf by the real converter: uploaded, or read where they lie."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pathlib
from collections.abc import AsyncIterator

import pytest

from daemon.errors import Invalid, LoadFailed, NotFound, NotYet
from daemon.models.describe import show
from daemon.models.jobs import CONVERTER_COMMAND
from daemon.models.name import parse_name
from daemon.models.shelving import import_file
from daemon.models.tensor_folder import folder_files
from tests.daemon.models.shelf import TARGET, Shelf
from tests.models.hugging_face import make_folder
from tests.models.hugging_face_families import FAMILIES


@pytest.fixture
async def shelf(tmp_path: pathlib.Path) -> AsyncIterator[Shelf]:
    shelf = Shelf(tmp_path, CONVERTER_COMMAND)
    yield shelf
    await shelf.conversions.close()
    assert shelf.staging() == []
    assert list(shelf.artifacts.glob("*/gguf-*")) == []


async def uploaded(shelf: Shelf, folder: pathlib.Path) -> dict[str, str]:
    return {
        name: f"sha256:{await shelf.put(path.read_bytes())}"
        for name, path in folder_files(folder).items()
    }


async def imported(shelf: Shelf, folder: pathlib.Path, name: str = "m") -> list[str]:
    stream = import_file(shelf.store, shelf.conversions, shelf.creator, folder, name)
    return [status.status async for status in stream]


def without_repeats(statuses: list[str]) -> list[str]:
    return list(dict.fromkeys(statuses))


async def test_uploaded_files_become_a_model(shelf: Shelf, tmp_path: pathlib.Path) -> None:
    folder = make_folder(tmp_path / "hf", "qwen3", dtype="BF16", shards=2)
    files = await uploaded(shelf, folder)
    statuses = without_repeats(await shelf.create(model="mine", files=files))
    assert [status for status in statuses if "layer" not in status] == [
        "waiting for another conversion",
        "converting model",
        "verifying conversion",
        f"converting to {TARGET}",
        f"verifying the {TARGET} artifact",
        f"writing the {TARGET} artifact to disk",
        "writing manifest",
        "success",
    ]
    model = shelf.store.resolve(parse_name("mine"))
    assert (model.config.model_format, model.config.model_family) == ("gguf", "qwen3")
    assert model.config.file_type == "BF16"
    answer = await show(model, shelf.conversions, shelf.creator.target_for)
    inspection = await shelf.conversions.inspect(model.require_weights().digest)
    assert inspection.name == "mine"
    assert "im_start" in answer.template


async def test_a_folder_is_read_where_it_lies(shelf: Shelf, tmp_path: pathlib.Path) -> None:
    folder = make_folder(tmp_path / "bge", "bert-sentences")
    statuses = await imported(shelf, folder, "bge")
    assert statuses[-1] == "success"
    model = shelf.store.resolve(parse_name("bge"))
    assert model.parent_model == "bge.gguf"
    weights = model.require_weights()
    blobs = [path for path, _ in shelf.store.blobs.files() if path.stat().st_size > 1 << 20]
    assert blobs == [weights.path]  # nothing of the folder itself is on the shelf


async def test_what_was_not_taken_over_is_a_status(shelf: Shelf, tmp_path: pathlib.Path) -> None:
    statuses = await imported(shelf, make_folder(tmp_path / "phi", "phi3"))
    assert any("note: the sliding window of 2047" in status for status in statuses)


@pytest.mark.parametrize(
    ("config", "error", "text"),
    [
        ({"architectures": ["OPTForCausalLM"]}, LoadFailed, 'unsupported architecture "OPTFor'),
        ({"quantization_config": {"quant_method": "awq"}}, NotYet, "quantised already"),
        ({"num_attention_heads": "x"}, Invalid, "num_attention_heads"),
    ],
)
async def test_refused_before_a_byte_is_written(
    shelf: Shelf,
    tmp_path: pathlib.Path,
    config: dict[str, object],
    error: type[Exception],
    text: str,
) -> None:
    folder = make_folder(tmp_path / "hf", "llama")
    (folder / "config.json").write_text(json.dumps(FAMILIES["llama"].config | config))
    with pytest.raises(error, match=text):
        await imported(shelf, folder)
    assert list(shelf.store.blobs.files()) == []
    files = await uploaded(shelf, folder)
    with pytest.raises(error, match=text):
        await shelf.create(model="m", files=files)
    assert shelf.store.is_empty()


async def test_leaving_takes_everything_back(shelf: Shelf, tmp_path: pathlib.Path) -> None:
    folder = make_folder(tmp_path / "hf", "llama", hidden_size=1024, intermediate_size=8192)
    stream = import_file(shelf.store, shelf.conversions, shelf.creator, folder, "m")
    async with contextlib.aclosing(stream) as steps:
        async for status in steps:
            if status.status == "converting model" and status.completed:
                break
    assert shelf.conversions.jobs() == []
    assert list(shelf.store.blobs.files()) == []
    await asyncio.sleep(0)


async def test_a_folder_that_the_daemon_may_not_read(shelf: Shelf, tmp_path: pathlib.Path) -> None:
    folder = make_folder(tmp_path / "hf", "llama")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(folder / "nowhere")
    with pytest.raises(NotFound, match="is nothing that the daemon can read"):
        await imported(shelf, folder)


def test_what_a_client_sends(tmp_path: pathlib.Path) -> None:
    folder = make_folder(tmp_path / "hf", "bert-sentences")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    (folder / "README.md").write_text("x")
    assert sorted(folder_files(folder)) == [
        "1_Pooling/config.json", "config.json", "model.safetensors", "modules.json",
        "sentence_bert_config.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    (folder / "model.safetensors").unlink()
    with pytest.raises(Invalid, match=r"pytorch_model\.bin holds pickled weights"):
        folder_files(folder)
    (folder / "model.safetensors").symlink_to("/etc/hostname")
    with pytest.raises(Invalid, match="leads out of the folder"):
        folder_files(folder)
