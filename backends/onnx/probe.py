"""Run as a child: whether ONNX Runtime works here, proven by a session on a one-node graph.

A GPU that is here and cannot be used is never passed over in silence: it becomes a hindrance, with
what the owner can do about it.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Callable, Mapping

import msgspec

from backends.onnx.cuda_trial import PROVIDER, Trial, run_trial
from backends.onnx.nvidia import NvidiaFacts, find_nvidia
from backends.select import Hindrance, RuntimeFacts

CPU_BUILD, GPU_BUILD = "onnxruntime", "onnxruntime-gpu"
# The oldest drivers of the two CUDA lines that ONNX Runtime is built for.
_CUDA_13_DRIVER, _CUDA_12_DRIVER = 580, 525
_START_ANEW = "uninstall both, then install hearth[cuda] for an NVIDIA GPU or hearth[cpu] without"


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """The distributions by version, and whether the package they share knows CUDA."""

    versions: Mapping[str, str]
    has_cuda: bool = False

    @property
    def is_mixed(self) -> bool:
        """Files of two versions lie over each other."""
        return len(set(self.versions.values())) > 1


def probe(
    nvidia: NvidiaFacts, installed: Installed, run: Callable[[], Trial] = run_trial
) -> RuntimeFacts:
    """`run` tries CUDA, where there is something to try. Raises what a broken runtime raises."""
    facts = RuntimeFacts(name="onnx")
    if not installed.versions:
        hindrances = _hindrances(_build_missing(nvidia)) if nvidia.is_present else ()
        return msgspec.structs.replace(
            facts, reason="onnxruntime is not installed", hindrances=hindrances
        )
    if installed.is_mixed:
        found = " and ".join(f"{name} {version}" for name, version in installed.versions.items())
        reason = f"{found} are both installed, over each other; {_START_ANEW}"
        return msgspec.structs.replace(facts, reason=reason)
    _run_one_node()
    version = next(iter(installed.versions.values()))
    facts = msgspec.structs.replace(
        facts, version=version, devices=("cpu",), warnings=_warnings(installed)
    )
    return _with_cuda(facts, nvidia, installed, run)


def _with_cuda(
    facts: RuntimeFacts, nvidia: NvidiaFacts, installed: Installed, run: Callable[[], Trial]
) -> RuntimeFacts:
    if not nvidia.is_present:
        return facts
    if nvidia.problem:
        trial = Trial(problem=nvidia.problem, remedy=nvidia.remedy)
    elif not installed.has_cuda:
        trial = _build_missing(nvidia)
    else:
        trial = run()
    if trial.works:
        return msgspec.structs.replace(
            facts, devices=("cuda", *facts.devices), accelerators=_named(trial, nvidia)
        )
    trial = msgspec.structs.replace(trial, problem=f"{nvidia.title} is here, but {trial.problem}")
    return msgspec.structs.replace(
        facts, hindrances=_hindrances(trial), accelerators=_named(trial, nvidia)
    )


def _named(trial: Trial, nvidia: NvidiaFacts) -> tuple:
    return tuple(msgspec.structs.replace(one, driver=nvidia.driver) for one in trial.accelerators)


def _hindrances(trial: Trial) -> tuple[Hindrance, ...]:
    return (Hindrance(device="cuda", reason=trial.problem, remedy=trial.remedy),)


def _build_missing(nvidia: NvidiaFacts) -> Trial:
    """The GPU is fine, what is installed was not built for it."""
    return Trial(
        problem="the installed ONNX Runtime is the one without CUDA",
        remedy=extra_for(nvidia.driver, platform.machine()),
    )


def extra_for(driver: str, processor: str) -> str:
    """Which extra of ours brings the ONNX Runtime that a driver can run."""
    major = int(driver.partition(".")[0] or 0)
    in_place = "in place of hearth[cpu]"
    if not driver or major >= _CUDA_13_DRIVER:
        return f"install hearth[cuda] {in_place} (make EXTRA=cuda serve)"
    newer = f"update its driver ({driver}) to version {_CUDA_13_DRIVER} or newer"
    if major >= _CUDA_12_DRIVER and processor == "x86_64":
        return f"install hearth[cuda12] {in_place} (make EXTRA=cuda12 serve), or {newer}"
    return f"{newer}, then install hearth[cuda] {in_place}"


def _warnings(installed: Installed) -> tuple[str, ...]:
    if len(installed.versions) < 2:
        return ()
    has = "has" if installed.has_cuda else "has no"
    return (
        "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; the "
        f"one that was installed last is in force and {has} CUDA; {_START_ANEW}",
    )


def find_installed() -> Installed:
    versions: dict[str, str] = {}
    for name in (CPU_BUILD, GPU_BUILD):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if not versions or Installed(versions=versions).is_mixed:
        return Installed(versions=versions)
    import onnxruntime

    has_cuda = PROVIDER in onnxruntime.get_available_providers()
    return Installed(versions=versions, has_cuda=has_cuda)


def _run_one_node() -> None:
    """Raises whatever the runtime raises; a wrong result is an error too."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])], "probe", value[:1], value[1:]
    )
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (result,) = session.run(None, {"x": np.array([2.0], np.float32)})
    if float(np.asarray(result)[0]) != -2.0:
        raise RuntimeError("a one-node graph gave a wrong result")


if __name__ == "__main__":
    found = probe(find_nvidia(), find_installed())
    sys.stdout.buffer.write(b"\n" + msgspec.json.encode(found))
