"""Run as a child of the probe: whether CUDA works, proven by a session on a one-node graph.

A process of its own, because a broken driver or library can take it down; what it prints last is a
`Trial`. NOTE: ONNX Runtime falls back to the CPU without an error, so its providers are looked at.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import msgspec

from backends.onnx.cuda_driver import CudaDriver, DriverError
from backends.select import Accelerator

TRIAL_SECONDS = 45.0
PROVIDER = "CUDAExecutionProvider"
_MISSING = re.compile(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file")
_FAILURE = re.compile(r"CUDA failure \d+: [^;\n]+(?<! )")
_SIZE = 64
_NOT_LOADED = "ONNX Runtime could not load its CUDA provider"


class Trial(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`works`, or a problem and maybe a remedy."""

    works: bool = False
    problem: str = ""
    remedy: str = ""
    accelerators: tuple[Accelerator, ...] = ()


def run_trial() -> Trial:
    """In a child; whatever goes wrong there becomes the problem."""
    command = [sys.executable, "-P", "-m", __name__]
    try:
        child = subprocess.run(
            command, capture_output=True, timeout=TRIAL_SECONDS, check=False, env=_environment()
        )
    except subprocess.TimeoutExpired:
        return Trial(problem=f"a one-node graph on it did not end within {TRIAL_SECONDS:g} s")
    said, _, answer = child.stdout.rstrip().rpartition(b"\n")
    told = (said + child.stderr).decode("utf-8", "replace")
    try:
        return with_reason(msgspec.json.decode(answer, type=Trial), told)
    except msgspec.MsgspecError:
        last = told.strip().rpartition("\n")[2]
        return Trial(problem=f"trying it ended with {child.returncode}: {last or 'no word'}")


def with_reason(trial: Trial, told: str) -> Trial:
    """Adds what the runtime's own words say: which libraries are missing, or what CUDA answered."""
    if trial.problem != _NOT_LOADED:
        return trial
    missing = sorted(set(_MISSING.findall(told)))
    if missing:
        because = f"because {', '.join(missing)} cannot be found"
        return msgspec.structs.replace(trial, problem=f"{trial.problem} {because}")
    failure = _FAILURE.search(told)
    if failure is None:
        return trial
    return msgspec.structs.replace(trial, problem=f"{trial.problem}: {failure.group(0)}", remedy="")


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def attempt(driver: CudaDriver | None = None) -> Trial:
    """The whole of it, in this process."""
    import onnxruntime

    try:
        driver = driver or CudaDriver()
        accelerators = (driver.accelerator(),)
        known = driver.cuda_version()
    except DriverError as error:
        return Trial(problem=f"{error}{_hidden_devices()}", remedy=error.remedy)
    if outdated := _outdated(known, onnxruntime.cuda_version):
        return outdated
    preload()
    try:
        is_used = _run_one_node()
    except Exception as error:  # noqa: BLE001  (the runtime raises several unrelated classes)
        first = str(error).strip().partition("\n")[0]
        return Trial(problem=f"a one-node graph on it failed: {first}", accelerators=accelerators)
    if is_used:
        return Trial(works=True, accelerators=accelerators)
    return Trial(
        problem=_NOT_LOADED,
        remedy="install hearth[cuda] anew: CUDA's libraries come with it",
        accelerators=accelerators,
    )


def preload() -> None:
    """Loads CUDA's libraries from their own packages: before the first session. May print."""
    import onnxruntime

    onnxruntime.preload_dlls(directory="")


def _hidden_devices() -> str:
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if value is None else f" (CUDA_VISIBLE_DEVICES is {value!r})"


def _outdated(known: tuple[int, int], built_for: str) -> Trial | None:
    """Minor versions are compatible with each other, major ones are not."""
    major = built_for.partition(".")[0]
    if not major.isdigit() or known[0] >= int(major):
        return None
    remedy = "update the driver to version 580 or newer"
    if major == "13" and known[0] == 12:
        remedy += ", or install hearth[cuda12] in place of hearth[cuda]"
    return Trial(
        problem=f"its driver knows CUDA {known[0]}.{known[1]} at most and the installed ONNX Runtime "
        f"needs CUDA {major}",
        remedy=remedy,
    )


def _run_one_node() -> bool:
    """Whether CUDA did it. Raises what the runtime raises; a wrong result is an error too."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper

    shape = [_SIZE, _SIZE]
    names = ("a", "b", "y")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name in names]
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    graph = helper.make_graph([node], "probe", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[PROVIDER])
    if PROVIDER not in session.get_providers():
        return False
    a = np.eye(_SIZE, dtype=np.float16) * np.float16(-2)
    b = (np.arange(_SIZE * _SIZE).reshape(shape) % 7).astype(np.float16)
    (result,) = session.run(None, {"a": a, "b": b})
    if not np.array_equal(np.asarray(result), -2 * b):
        raise RuntimeError("a product on the GPU is wrong")
    return True


if __name__ == "__main__":
    sys.stdout.buffer.write(b"\n" + msgspec.json.encode(attempt()))
