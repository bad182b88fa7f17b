from __future__ import annotations

import os
import pathlib

import msgspec
import pytest

from backends.select import Hindrance, Machine, RuntimeFacts
from converters.inspection import Inspection, inspection_path
from daemon.diagnosis import announced_backend, diagnose
from daemon.lan.access import add_key, keys_path
from tests.daemon.api.serving import loopback_config

MLX = RuntimeFacts(name="mlx", version="0.32", devices=("gpu",))
CPU = RuntimeFacts(name="onnx", version="1.31.1", devices=("cpu",))
CUDA = RuntimeFacts(name="onnx", version="1.31.1", devices=("cuda", "cpu"))
IDLE = Hindrance(device="cuda", reason="a GPU is here, but it sleeps", remedy="wake it")


def linux(*runtimes: RuntimeFacts) -> Machine:
    return Machine(system="Linux", processor="x86_64", runtimes=runtimes)


def test_a_healthy_machine_has_nothing_to_do(tmp_path: pathlib.Path):
    apple = Machine(system="Darwin", processor="arm64", runtimes=(MLX, CPU))
    found = diagnose(loopback_config(tmp_path), apple, version="1", answers=True)
    assert found.can_run_models and found.remedies == ()
    assert [place.role for place in found.places] == ["state", "models", "artifacts"]
    assert (found.places[0].exists, found.places[1].exists) == (True, False)
    assert found.listening.announced == ""


def test_idle_hardware_comes_with_its_remedy(tmp_path: pathlib.Path):
    machine = linux(msgspec.structs.replace(CPU, hindrances=(IDLE,)))
    found = diagnose(loopback_config(tmp_path), machine, version="1", answers=True)
    assert found.remedies == ("a GPU is here, but it sleeps; wake it",)


def test_a_machine_that_runs_nothing_says_why(tmp_path: pathlib.Path):
    found = diagnose(loopback_config(tmp_path), linux(), version="1", answers=False)
    assert not found.can_run_models
    assert found.remedies[0].startswith("nothing here can run a model: ")


def test_kinds_that_run_elsewhere_are_named(tmp_path: pathlib.Path):
    for digest, architecture, refusals in (
        ("a" * 64, "lfm2", {"onnx-cuda": "no kernel"}),
        ("b" * 64, "llama", {}),
        ("c" * 64, "lfm2", {"onnx-cuda": "no kernel"}),
    ):
        inspection = Inspection(digest=digest, size=1, architecture=architecture, refusals=refusals)
        path = inspection_path(tmp_path, digest)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(msgspec.json.encode(inspection))
    found = diagnose(loopback_config(tmp_path), linux(CUDA), version="1", answers=True)
    assert [(choice.kind, choice.device) for choice in found.choices] == [
        ("models", "cuda"),
        ("lfm2", "cpu"),
    ]


def test_a_place_that_cannot_be_written_is_said(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """Nothing is closed to root, so the system's answer is given here."""
    closed = tmp_path / "closed"
    closed.mkdir()
    allowed = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: allowed(path, mode) and (path != closed or not mode)
    )
    config = loopback_config(tmp_path, models=closed / "models")
    found = diagnose(config, linux(CPU), version="1", answers=True)
    assert found.remedies == (f"{closed}/models (models) cannot be written by this user",)


def test_artifacts_are_counted(tmp_path: pathlib.Path):
    folder = tmp_path / "artifacts" / ("d" * 64) / "onnx-cpu-f1"
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_bytes(b"x" * 100)
    found = diagnose(loopback_config(tmp_path), linux(CPU), version="1", answers=True)
    assert (found.artifacts, found.artifacts_size) == (1, 100)


def test_who_is_let_in_is_counted_and_a_shut_door_is_a_remedy(tmp_path: pathlib.Path):
    config = loopback_config(tmp_path, host="0.0.0.0")
    found = diagnose(config, linux(CPU), version="1", answers=False)
    assert found.listening.keys == 0
    assert "hearth key add" in found.remedies[-1]
    add_key(tmp_path, "laptop", "use")
    found = diagnose(config, linux(CPU), version="1", answers=True)
    assert (found.listening.keys, found.remedies) == (1, ())
    keys_path(tmp_path).write_text("{")
    for damaged in (config, loopback_config(tmp_path)):
        found = diagnose(damaged, linux(CPU), version="1", answers=True)
        assert found.listening.keys == 0
        assert "keys.json" in found.remedies[-1]


def test_the_word_for_the_network():
    assert announced_backend(linux(CUDA), "auto") == "ort-cuda"
    assert announced_backend(linux(CPU), "auto") == "ort-cpu"
    assert announced_backend(linux(MLX), "mlx") == "mlx"
    assert announced_backend(linux(), "auto") == ""
