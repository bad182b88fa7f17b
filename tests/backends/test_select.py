from __future__ import annotations

import pathlib
import sys

import pytest

from backends.select import (
    Choice,
    Hindrance,
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


NO_MLX = RuntimeFacts(name="mlx", reason="mlx is not installed")
NEEDS_CUDA = Hindrance(
    device="cuda", reason="an NVIDIA GPU is here, but ...", remedy="install hearth[cuda]"
)
HINDERED = RuntimeFacts(name="onnx", version="1.31.1", devices=("cpu",), hindrances=(NEEDS_CUDA,))
PROCESSORS = {"Darwin": "arm64", "Linux": "x86_64"}


def machine(*runtimes: RuntimeFacts, system: str = "Linux") -> Machine:
    return Machine(system=system, processor=PROCESSORS[system], runtimes=runtimes)


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
        (machine(NO_MLX, ONNX, system="Darwin"), {}, "auto", ("onnx", "onnx-cpu", "cpu")),
        (machine(CUDA), {"onnx-cuda": "no"}, "auto", ("onnx", "onnx-cpu", "cpu")),
        (machine(CUDA), {"onnx-cpu": "no"}, "auto", ("onnx", "onnx-cuda", "cuda")),
        (machine(CUDA), {}, "onnx-cpu", ("onnx", "onnx-cpu", "cpu")),
        (machine(CUDA), {}, "onnx-cuda", ("onnx", "onnx-cuda", "cuda")),
        (machine(MLX, CUDA, system="Darwin"), {"mlx": "no"}, "auto", ("onnx", "onnx-cuda", "cuda")),
        (machine(HINDERED), {}, "auto", ("onnx", "onnx-cpu", "cpu")),
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


SENTENCES = [
    (machine(MLX, ONNX, system="Darwin"), {}, "auto", "MLX 0.32 on gpu"),
    (
        machine(NO_MLX, ONNX, system="Darwin"),
        {},
        "auto",
        "ONNX Runtime 1.31.1 on cpu (MLX: mlx is not installed)",
    ),
    (
        machine(MLX, ONNX, system="Darwin"),
        {"mlx": "llama: heads of [64, 128] in one model"},
        "auto",
        "ONNX Runtime 1.31.1 on cpu (MLX: llama: heads of [64, 128] in one model)",
    ),
    (machine(CUDA), {}, "auto", "ONNX Runtime 1.31.1 on cuda (MLX: meant for Apple silicon)"),
    (
        machine(CUDA),
        {"onnx-cuda": "lfm2: CUDA has no kernel for it"},
        "auto",
        "ONNX Runtime 1.31.1 on cpu (MLX: meant for Apple silicon; ONNX Runtime on CUDA: lfm2: CUDA "
        "has no kernel for it)",
    ),
    (
        machine(HINDERED),
        {},
        "auto",
        "ONNX Runtime 1.31.1 on cpu (MLX: meant for Apple silicon; ONNX Runtime on CUDA: an NVIDIA "
        "GPU is here, but ...; install hearth[cuda])",
    ),
    (
        machine(CUDA),
        {},
        "onnx-cpu",
        "ONNX Runtime 1.31.1 on cpu (MLX: the configuration asks for onnx-cpu; ONNX Runtime on CUDA: "
        "the configuration asks for onnx-cpu)",
    ),
]


@pytest.mark.parametrize(("where", "refusals", "wanted", "sentence"), SENTENCES)
def test_the_reason_is_one_sentence(where: Machine, refusals: dict, wanted: str, sentence: str):
    assert select_backend(where, refusals, wanted).reason == sentence


REFUSED = [
    (Machine(system="Windows", processor="AMD64", runtimes=(ONNX,)), "auto", "inside WSL2"),
    (Machine(system="FreeBSD", processor="amd64"), "auto", "FreeBSD is not supported"),
    (Machine(system="Darwin", processor="x86_64", runtimes=(ONNX,)), "auto", "Darwin on x86_64"),
    (Machine(system="Linux", processor="riscv64", runtimes=(ONNX,)), "auto", "Linux on riscv64"),
    (machine(NO_MLX), "auto", "MLX: meant for Apple silicon; ONNX Runtime: it was not looked for"),
    (machine(ONNX), "onnx-cuda", "ONNX Runtime on CUDA: no NVIDIA GPU was found"),
    (
        machine(HINDERED),
        "onnx-cuda",
        "ONNX Runtime on CUDA: an NVIDIA GPU is here, but ...; install",
    ),
    (machine(NO_MLX, ONNX), "mlx", "MLX: mlx is not installed"),
]


@pytest.mark.parametrize(("where", "wanted", "reason"), REFUSED)
def test_what_cannot_be_had_is_refused_with_its_reasons(where: Machine, wanted: str, reason: str):
    with pytest.raises(NoBackend) as caught:
        select_backend(where, {}, wanted)
    assert reason in str(caught.value)


def test_idle_hardware_is_an_alarm():
    double = RuntimeFacts(name="onnx", devices=("cpu",), warnings=("two of them",))
    assert machine(HINDERED).alarms() == ("an NVIDIA GPU is here, but ...; install hearth[cuda]",)
    assert machine(MLX, double).alarms() == ("two of them",)
    assert machine(MLX, CUDA).alarms() == ()


@pytest.mark.parametrize("wanted", ["tpu", ""])
def test_an_unknown_wish_is_refused(wanted: str):
    with pytest.raises(NoBackend):
        select_backend(machine(ONNX), {}, wanted)


async def test_the_probe_runs_onnx_for_real_in_a_child():
    before = set(sys.modules)
    found = await probe_machine()
    facts = {facts.name: facts for facts in found.runtimes}
    assert facts["onnx"].devices == ("cpu",)
    assert facts["onnx"].version
    assert "backends.onnx.probe" not in set(sys.modules) - before
    assert select_backend(found, {}, "onnx").backend == "onnx"
    assert found.release


async def test_the_last_line_of_a_probe_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
):
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\necho noise\necho \'{"name":"onnx","devices":["cpu"]}\'\n')
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    assert (await probe_runtime("onnx")).devices == ("cpu",)


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
