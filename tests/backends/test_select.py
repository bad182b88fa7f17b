from __future__ import annotations

import pathlib
import sys

import pytest

from backends.select import (
    Choice,
    Machine,
    NoBackend,
    RuntimeFacts,
    probe_machine,
    probe_runtime,
    select_backend,
)

MLX = RuntimeFacts(name="mlx", version="0.32", devices=("gpu",))
ONNX = RuntimeFacts(name="onnx", version="1.31.1", devices=("cpu",))
CUDA = RuntimeFacts(name="onnx", version="1.31.1", devices=("cuda", "cpu"))


def machine(*runtimes: RuntimeFacts, system: str = "Linux") -> Machine:
    return Machine(system=system, processor="x", runtimes=runtimes)


@pytest.mark.parametrize(
    ("where", "refusals", "wanted", "expected"),
    [
        (machine(MLX, ONNX, system="Darwin"), {}, "auto", ("mlx", "mlx", "gpu")),
        (machine(MLX, ONNX, system="Darwin"), {"mlx": "no"}, "auto", ("onnx", "onnx-cpu", "cpu")),
        (machine(MLX, ONNX, system="Darwin"), {}, "onnx", ("onnx", "onnx-cpu", "cpu")),
        (machine(MLX, ONNX), {}, "auto", ("onnx", "onnx-cpu", "cpu")),
        (machine(MLX, ONNX), {}, "mlx", ("mlx", "mlx", "gpu")),
        (machine(CUDA), {}, "auto", ("onnx", "onnx-cuda", "cuda")),
        (machine(), {}, "scripted", ("scripted", "scripted", "cpu")),
    ],
)
def test_choice(where: Machine, refusals: dict, wanted: str, expected: tuple[str, str, str]):
    choice = select_backend(where, refusals, wanted)
    assert isinstance(choice, Choice)
    assert (choice.backend, choice.target, choice.device) == expected
    assert choice.reason


def test_the_reason_names_what_was_passed_over():
    choice = select_backend(machine(MLX, ONNX), {})
    assert choice.reason == "ONNX Runtime 1.31.1 on cpu (MLX: meant for Apple silicon)"


def test_a_refusal_names_every_reason():
    broken = RuntimeFacts(name="onnx", reason="the library is missing")
    with pytest.raises(NoBackend) as caught:
        select_backend(machine(MLX, broken, system="Darwin"), {"mlx": "architecture x is unknown"})
    assert "MLX: architecture x is unknown" in str(caught.value)
    assert "ONNX Runtime: the library is missing" in str(caught.value)


@pytest.mark.parametrize("wanted", ["tpu", ""])
def test_an_unknown_wish_is_refused(wanted: str):
    with pytest.raises(NoBackend):
        select_backend(machine(ONNX), {}, wanted)


async def test_the_probe_runs_onnx_for_real_in_a_child():
    found = await probe_machine()
    facts = {facts.name: facts for facts in found.runtimes}
    assert facts["onnx"].devices == ("cpu",)
    assert facts["onnx"].version
    assert "backends.onnx.probe" not in sys.modules
    assert select_backend(found, {}, "onnx").backend == "onnx"


async def test_a_probe_that_dies_becomes_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
):
    stub = tmp_path / "python"
    stub.write_text("#!/bin/sh\necho 'Illegal instruction' >&2\nexit 132\n")
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    facts = await probe_runtime("onnx")
    assert facts.devices == ()
    assert "Illegal instruction" in facts.reason


async def test_a_backend_that_is_not_built_in_is_a_reason():
    assert (await probe_runtime("nosuch")).reason == "this build has no such backend"
