from __future__ import annotations

import sys

import pytest

from backends.onnx import cuda_trial
from backends.onnx.cuda_driver import CudaDriver
from backends.onnx.cuda_trial import Trial, attempt, run_trial, with_reason
from backends.onnx.nvidia import NvidiaFacts, find_nvidia
from backends.onnx.probe import Installed, extra_for, find_installed, probe
from backends.select import Accelerator, Machine, RuntimeFacts, select_backend
from tests.backends.onnx.fake_driver import FakeLibrary

NO_GPU = NvidiaFacts()
GPU = NvidiaFacts(is_present=True, names=("NVIDIA X",), driver="580.95.05")
CPU_BUILD = Installed(versions={"onnxruntime": "1.31.1"})
GPU_BUILD = Installed(versions={"onnxruntime-gpu": "1.31.1"}, has_cuda=True)
X = Accelerator(name="NVIDIA X", total_bytes=8, free_bytes=4)


def never() -> Trial:
    raise AssertionError("there is nothing to try")


def sentence(facts: RuntimeFacts) -> str:
    (hindrance,) = facts.hindrances
    return hindrance.sentence


def test_no_gpu_is_no_hindrance():
    for build in (CPU_BUILD, GPU_BUILD):
        facts = probe(NO_GPU, build, never)
        assert (facts.devices, facts.hindrances, facts.warnings) == (("cpu",), (), ())


def test_a_gpu_that_works_comes_first():
    facts = probe(GPU, GPU_BUILD, lambda: Trial(works=True, accelerators=(X,)))
    assert facts.devices == ("cuda", "cpu")
    assert facts.accelerators[0].driver == "580.95.05"
    machine = Machine(system="Linux", processor="x86_64", runtimes=(facts,))
    assert select_backend(machine, {}).target == "onnx-cuda"


def test_a_gpu_beside_the_cpu_build_asks_for_the_extra():
    facts = probe(GPU, CPU_BUILD, never)
    assert facts.devices == ("cpu",)
    assert sentence(facts) == (
        "NVIDIA X is here, but the installed ONNX Runtime is the one without CUDA; install "
        "hearth[cuda] in place of hearth[cpu] (make EXTRA=cuda serve)"
    )


def test_a_gpu_out_of_reach_is_not_tried():
    closed = NvidiaFacts(is_present=True, driver="1", problem="it is closed", remedy="open it")
    assert (
        sentence(probe(closed, GPU_BUILD, never))
        == "an NVIDIA GPU is here, but it is closed; open it"
    )


def test_a_failed_trial_is_said_with_its_remedy():
    facts = probe(GPU, GPU_BUILD, lambda: Trial(problem="it broke", remedy="mend it"))
    assert facts.devices == ("cpu",)
    assert sentence(facts) == "NVIDIA X is here, but it broke; mend it"


def test_both_distributions_of_one_version_are_a_warning():
    both = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}
    facts = probe(NO_GPU, Installed(versions=both))
    assert facts.devices == ("cpu",)
    assert "both installed" in facts.warnings[0] and "has no CUDA" in facts.warnings[0]


def test_both_distributions_of_two_versions_are_refused():
    both = {"onnxruntime": "1.30.0", "onnxruntime-gpu": "1.31.1"}
    facts = probe(GPU, Installed(versions=both), never)
    assert facts.devices == ()
    assert facts.reason.startswith(
        "onnxruntime 1.30.0 and onnxruntime-gpu 1.31.1 are both installed"
    )


def test_nothing_installed():
    assert probe(NO_GPU, Installed(versions={})).reason == "onnxruntime is not installed"
    assert "hearth[cuda]" in sentence(probe(GPU, Installed(versions={})))


@pytest.mark.parametrize(
    ("driver", "processor", "words"),
    [
        ("580.95.05", "x86_64", "install hearth[cuda] "),
        ("", "x86_64", "install hearth[cuda] "),
        ("570.86", "x86_64", "install hearth[cuda12] "),
        ("570.86", "aarch64", "update its driver (570.86) to version 580"),
        ("470.1", "x86_64", "update its driver (470.1) to version 580"),
    ],
)
def test_the_extra_follows_the_driver(driver: str, processor: str, words: str):
    assert extra_for(driver, processor).startswith(words)


def test_a_driver_too_old_for_this_cuda(monkeypatch: pytest.MonkeyPatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0")
    trial = attempt(CudaDriver(FakeLibrary(version=12080)))
    assert trial.problem.startswith("its driver knows CUDA 12.8 at most")
    assert "hearth[cuda12]" in trial.remedy


def test_a_driver_that_says_no(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    library = FakeLibrary(codes={"cuMemGetInfo": 100})
    trial = attempt(CudaDriver(library))
    assert trial.problem == "cuMemGetInfo: the driver sees no GPU (CUDA_VISIBLE_DEVICES is '7')"


def test_a_runtime_that_quietly_takes_the_cpu_is_found_out():
    """The CPU build stands for one whose CUDA provider does not load: it takes the CPU instead."""
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        trial = attempt(CudaDriver(FakeLibrary()))
    assert not trial.works
    assert trial.problem == cuda_trial._NOT_LOADED


# What onnxruntime-gpu 1.31.1 says where its libraries, or a GPU, are missing.
NO_LIBRARIES = """\
Failed to load libcublasLt.so.13: libcublasLt.so.13: cannot open shared object file: No such file
Failed to load libcurand.so.10: libcurand.so.10: cannot open shared object file: No such file or dir
"""
NO_DEVICE = "CudaCall CUDA failure 100: no CUDA-capable device is detected ; GPU=-1 ; hostname=x"


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (NO_LIBRARIES, "because libcublasLt.so.13, libcurand.so.10 cannot be found"),
        (NO_DEVICE, "provider: CUDA failure 100: no CUDA-capable device is detected"),
        ("", "provider"),
    ],
)
def test_the_runtimes_own_words_give_the_reason(told: str, words: str):
    trial = with_reason(Trial(problem=cuda_trial._NOT_LOADED, remedy="r"), told)
    assert trial.problem.endswith(words)


def test_the_trial_runs_in_a_child():
    """There is no GPU where tests run, so it says why; where there is one, it works."""
    trial = run_trial()
    assert trial.works or trial.problem
    assert "backends.onnx.cuda_trial" in sys.modules


def test_a_trial_that_dies_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path):
    stub = tmp_path / "python"
    stub.write_text("#!/bin/sh\necho 'Segmentation fault' >&2\nexit 139\n")
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    assert run_trial().problem == "trying it ended with 139: Segmentation fault"


def test_what_is_here_is_found():
    installed = find_installed()
    facts = probe(find_nvidia(), installed)
    assert facts.version in installed.versions.values()
