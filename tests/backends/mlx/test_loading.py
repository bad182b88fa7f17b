"""From a folder to an engine: numbers, memory, and folders that are refused."""

from __future__ import annotations

import gc
import json
import logging
import pathlib
from typing import Any

import mlx.core as mx
import msgspec
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from backends.mlx import loading
from backends.mlx.device import plan_wired
from backends.mlx.key_values import RowBytes, plan_context, plan_rows
from backends.mlx.loading import load_engine, plan_numbers
from backends.types import EngineError, Load
from converters.artifact import ARTIFACT_FILE, MLX_CONFIG_FILE, MLX_WEIGHTS_FILE, read_artifact
from converters.convert import Request, convert
from converters.progress import Progress
from converters.vision_artifact import VISION_FILE, ImageForm, VisionArtifact
from tests.backends.mlx.engine_rig import answers, greedy, load_tiny, prompt_of
from tests.backends.mlx.tiny_mlx import EMBEDDING, GEMMA2, LLAMA, write_tiny_mlx
from tests.models.random_gguf import make_gguf


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    write_tiny_mlx(tmp_path)
    return tmp_path


def test_a_cpu_computes_in_fp32_and_a_gpu_as_stored():
    assert list(plan_numbers("float16", "cpu")) == ["float32"]
    assert list(plan_numbers("float16", "metal")) == ["float16", "bfloat16", "float32"]
    assert list(plan_numbers("bfloat16", "metal")) == ["bfloat16", "float32"]
    assert list(plan_numbers("float32", "metal")) == ["float32"]
    assert next(iter(plan_numbers("strange", "metal"))) == "float16"


@pytest.mark.parametrize(("scale", "numbers"), [(1.0, "float16"), (3e4, "bfloat16")])
def test_numbers_that_overflow_are_found_at_load(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    scale: float,
    numbers: str,
):
    """As on a GPU: fp16 first, whose head is finite and whose logits are not."""
    write_tiny_mlx(tmp_path, scale=scale, numbers="float16")
    monkeypatch.setattr(loading, "plan_numbers", lambda stored, place: plan_numbers(stored, "gpu"))
    with caplog.at_level(logging.WARNING):
        engine = load_tiny(tmp_path)
    assert engine.capabilities.numbers == numbers
    assert ("overflows" in caplog.text) == (numbers != "float16")
    assert len(answers(engine, greedy("a", prompt_of(20)))["a"]) == 12
    engine.close()


@pytest.mark.parametrize("architecture", ["llama", "lfm2"])
def test_the_artifact_says_what_a_position_takes_here(tmp_path: pathlib.Path, architecture: str):
    source = make_gguf(tmp_path / "m.gguf", architecture=architecture, types="Q8_0")
    final = tmp_path / "artifact"
    with source.open("rb") as file:
        convert(file, Request(source="0" * 64, target="mlx", final=final), Progress())
    artifact = read_artifact(final)
    engine = load_tiny(final)
    held = engine._row_bytes.position
    engine.close()
    assert artifact.kv_bytes_on("cpu") == held
    assert artifact.kv_bytes_on("cpu") == 2 * artifact.kv_bytes_on("metal") > 0


def test_what_does_not_fit_is_refused_before_it_is_read(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("backends.mlx.device.available_bytes", lambda: 1000)
    with pytest.raises(EngineError, match="the weights take") as caught:
        load_tiny(folder)
    assert caught.value.code == "memory"


def test_the_estimate_is_what_the_weights_take(folder: pathlib.Path):
    weights = loading._read_weights(folder)
    expected = loading._estimated_bytes(weights, mx.float32)
    del weights
    gc.collect()  # what other tests left in cycles
    before = mx.get_active_memory()
    engine = load_tiny(folder)
    held = mx.get_active_memory() - before
    engine.close()
    # MLX counts what it keeps for itself as well: some kilobytes, by what ran before.
    assert expected <= held <= expected * 1.02 + (32 << 10)


def test_a_cache_too_small_for_anything_is_refused(folder: pathlib.Path):
    with pytest.raises(EngineError, match="too few to answer in") as caught:
        load_tiny(folder, kv_bytes=1000)
    assert caught.value.code == "memory"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (MLX_CONFIG_FILE, b"{", "not an artifact for MLX"),
        (MLX_CONFIG_FILE, b"[]", "not an object"),
        (MLX_CONFIG_FILE, b'{"model_type": "../x"}', "no model of the type"),
        (MLX_WEIGHTS_FILE, b"\xff" * 64, "cannot be read"),
        (MLX_WEIGHTS_FILE, None, "no weights for MLX"),
        (ARTIFACT_FILE, b"{}", "no readable artifact"),
    ],
)
def test_folders_that_are_refused(
    folder: pathlib.Path, name: str, content: bytes | None, message: str
):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(EngineError, match=message) as caught:
        load_tiny(folder)
    assert caught.value.code == "load"


def test_weights_of_another_shape_are_refused(folder: pathlib.Path):
    config = json.loads((folder / MLX_CONFIG_FILE).read_text())
    (folder / MLX_CONFIG_FILE).write_text(json.dumps(config | {"intermediate_size": 256}))
    with pytest.raises(EngineError, match="do not fit") as caught:
        load_tiny(folder)
    assert caught.value.code == "load"


@pytest.mark.parametrize("fields", [{"adapters": ("a",)}, {"rows": 0}, {"context_length": 0}])
def test_loads_that_are_refused(folder: pathlib.Path, fields: dict):
    with pytest.raises(EngineError):
        load_tiny(folder, **fields)


def test_the_context_is_what_the_budget_and_the_model_allow():
    row = RowBytes(position=100, windows=5_000, states=1_000)
    assert row.of(1) == 256 * 100 + 6_000
    assert plan_context(4096, row, 1 << 30) == 4096
    assert plan_context(4096, row, 6_000 + 3 * 25_600) == 768
    assert plan_context(4096, row, 5_000) == 0
    assert plan_rows(4, 1000, 700) == 1
    assert plan_rows(4, 1000, 1600) == 3
    assert plan_rows(4, 0, 1600) == 4


def test_nothing_is_wired_unless_weights_fill_the_memory():
    gib = 1 << 30
    assert plan_wired(4 * gib, 16 * gib, 12 * gib) == 0
    assert plan_wired(40 * gib, 64 * gib, 48 * gib) == int(0.65 * 64 * gib)
    assert plan_wired(11 * gib, 16 * gib, 8 * gib) == 8 * gib
    assert plan_wired(11 * gib, 0, 0) == 0


def test_a_folder_as_mlx_lm_itself_writes_it(tmp_path: pathlib.Path):
    """One form for all that can be coded, no list of modules, weights in two files."""
    write_tiny_mlx(tmp_path, numbers="bfloat16")
    config = loading.read_config(tmp_path)
    weights = loading._read_weights(tmp_path)
    plain = load_tiny(tmp_path)
    model = plain._model
    assert model is not None
    form: dict[str, Any] = {"group_size": 64, "bits": 8}
    nn.quantize(model, **form)
    coded: Any = tree_flatten(model.parameters())
    halves = dict(coded[: len(coded) // 2]), dict(coded[len(coded) // 2 :])
    del weights, coded
    (tmp_path / MLX_WEIGHTS_FILE).unlink()
    for place, half in enumerate(halves, 1):
        mx.save_safetensors(str(tmp_path / f"model-0000{place}-of-00002.safetensors"), half)
    config |= {"quantization": form, "quantization_config": form}
    (tmp_path / MLX_CONFIG_FILE).write_text(json.dumps(config))
    expected = answers(plain, greedy("a", prompt_of(30)))
    plain.close()
    served = load_tiny(tmp_path)
    assert answers(served, greedy("a", prompt_of(30))) == expected
    served.close()


def test_a_model_that_mlx_lm_cannot_batch_is_run_row_by_row(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
):
    """Its attention takes the mask of a batch for one of heads: with as many rows as heads, silently."""
    write_tiny_mlx(tmp_path, LLAMA | GEMMA2)
    with caplog.at_level(logging.WARNING):
        engine = load_tiny(tmp_path, has_batches=True)
    assert "one by one" in caplog.text
    assert engine.capabilities.reproducible_batches
    requests = [greedy("a", prompt_of(70)), greedy("b", prompt_of(33, 30))]
    alone = answers(engine, requests[0]) | answers(engine, requests[1])
    assert answers(engine, *requests) == alone
    engine.close()


def test_a_model_with_pooling_gives_vectors_and_says_so(folder: pathlib.Path):
    artifact = msgspec.structs.replace(read_artifact(folder), pooling="last")
    (folder / ARTIFACT_FILE).write_bytes(msgspec.json.encode(artifact))
    engine = load_engine(Load(request_id="l", backend="mlx", artifact=str(folder)))
    assert (engine.capabilities.generate, engine.capabilities.embed) == (False, True)
    texts = [prompt_of(30), prompt_of(7, 40), prompt_of(9, 50)]
    together = engine.embed(texts)
    assert [engine.embed([text])[0] for text in texts] == pytest.approx(together)
    generating = load_tiny(folder_without_pooling(folder))
    assert generating.embed([texts[0]])[0] == together[0]
    generating.close()
    engine.add(greedy("a", (1, 2)))
    assert "does not generate" in engine.step()[0].message  # pyright: ignore[reportAttributeAccessIssue]
    engine.close()


def folder_without_pooling(folder: pathlib.Path) -> pathlib.Path:
    artifact = msgspec.structs.replace(read_artifact(folder), pooling="")
    (folder / ARTIFACT_FILE).write_bytes(msgspec.json.encode(artifact))
    return folder


def _write_vision(folder: pathlib.Path, **fields: Any) -> str:
    form = ImageForm(projector="gemma3", patch_size=14)
    vision = VisionArtifact(
        format=1, converter=1, source="1" * 64, variant="vision-mlx-f1", form=form, **fields
    )
    folder.mkdir(exist_ok=True)
    (folder / VISION_FILE).write_bytes(msgspec.json.encode(vision))
    return str(folder)


def test_the_projector_says_how_wide_an_images_vectors_are(tmp_path: pathlib.Path):
    write_tiny_mlx(tmp_path / "model")
    projector = _write_vision(tmp_path / "vision", width=EMBEDDING, deepstack=2)
    engine = load_tiny(tmp_path / "model", projector=projector)
    assert engine.capabilities.image_width == 3 * EMBEDDING
    engine.close()


@pytest.mark.parametrize("fields", [{"width": EMBEDDING + 1}, {"width": EMBEDDING, "deepstack": 3}])
def test_a_projector_of_another_model_is_refused(tmp_path: pathlib.Path, fields: dict[str, int]):
    write_tiny_mlx(tmp_path / "model")
    projector = _write_vision(tmp_path / "vision", **fields)
    with pytest.raises(EngineError, match="the projector gives vectors"):
        load_tiny(tmp_path / "model", projector=projector)
