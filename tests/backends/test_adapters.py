"""Engines with an adapter: llama.cpp's answers, from the cache too; another base's is refused."""

from __future__ import annotations

import pathlib

import pytest

from backends import mlx, onnx
from backends.engine.contract import Backend, Engine
from backends.types import (
    EngineError,
    Finished,
    GenerateRequest,
    Load,
    Sampled,
    Sampling,
    TokenEvent,
)
from converters.artifact import ADAPTER_FILE
from tests.models.random_adapter import make_adapter
from tests.models.random_gguf import make_gguf
from tests.models.reference import LlamaCpp
from tests.parity.converted import adapted_file, converted_file
from tests.parity.test_converted_onnx import COUNT, prompt_ids

TARGETS: dict[str, Backend] = {"onnx-cpu": onnx.backend, "mlx": mlx.backend}
PROMPT = prompt_ids(700)


class Files:
    def __init__(self, folder: pathlib.Path) -> None:
        self.base = make_gguf(folder / "base.gguf", types="F32")
        self.adapter = make_adapter(folder / "lora.gguf", self.base)
        self.artifacts = {name: converted_file(self.base, target=name) for name in TARGETS}
        self.adapters = {
            name: adapted_file(self.adapter, self.base, folder, target=name)
            for name, folder in self.artifacts.items()
        }

    def load(self, target: str, *adapters: pathlib.Path) -> Engine:
        return TARGETS[target].load(
            Load(
                request_id="load",
                backend=TARGETS[target].name,
                artifact=str(self.artifacts[target]),
                adapters=tuple(map(str, adapters)),
                rows=2,
                context_length=256,
                threads=1,
            )
        )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("adapted"))


def answer(engine: Engine, name: str = "a") -> tuple[list[int], int]:
    """(greedy ids, cached ids of the prompt)."""
    engine.add(
        GenerateRequest(
            request_id=name,
            prompt_ids=tuple(PROMPT),
            max_tokens=COUNT,
            sampling=Sampling(temperature=0.0),
        )
    )
    events: list[TokenEvent] = []
    while engine.has_work():
        events += engine.step()
    assert isinstance(events[-1], Finished), events[-1]
    ids = [event.token_id for event in events if isinstance(event, Sampled)]
    return ids, events[-1].usage.cached_tokens


@pytest.mark.parity
@pytest.mark.parametrize("target", TARGETS)
def test_answers_are_llama_cpps(files: Files, target: str):
    with LlamaCpp(files.base, adapter=files.adapter) as model:
        expected = model.greedy(PROMPT, COUNT)
    with LlamaCpp(files.base) as model:
        plain = model.greedy(PROMPT, COUNT)
    assert expected != plain
    engine = files.load(target, files.adapters[target])
    assert engine.capabilities.adapters
    assert answer(engine) == (expected, 0)
    again, cached = answer(engine, "b")
    assert (again, cached > 0) == (expected, True)
    engine.close()
    engine = files.load(target)
    assert answer(engine) == (plain, 0)
    engine.close()


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_not_for_these_weights_is_refused(
    files: Files, target: str, tmp_path: pathlib.Path
):
    right = files.adapters[target]
    described = (right / ADAPTER_FILE).read_bytes()
    cases = {
        "no readable artifact": b"",
        "another artifact of its base": described.replace(
            b'"base_structure":"', b'"base_structure":"0'
        ),
        "another model": described.replace(b"5e5e5e", b"5e5e00"),
    }
    for says, data in cases.items():
        folder = tmp_path / says.replace(" ", "-")
        folder.mkdir()
        for path in right.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        (folder / ADAPTER_FILE).write_bytes(data)
        with pytest.raises(EngineError, match=says) as caught:
            files.load(target, folder)
        assert caught.value.code == "load"
    with pytest.raises(EngineError, match="only one adapter") as caught:
        files.load(target, right, right)
    assert caught.value.code == "unsupported"


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_arrays_are_a_load_error(files: Files, target: str, tmp_path: pathlib.Path):
    for path in files.adapters[target].iterdir():
        is_weights = path.name in ("adapter.bin", "adapter.safetensors")
        data = path.read_bytes()
        (tmp_path / path.name).write_bytes(data[: len(data) // 2] if is_weights else data)
    with pytest.raises(EngineError) as caught:
        files.load(target, tmp_path)
    assert caught.value.code == "load"
