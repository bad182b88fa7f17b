"""Run as a child: whether ONNX Runtime works here, proven by a session on a one-node graph."""

from __future__ import annotations

import importlib.metadata
import sys

import msgspec

from backends.select import RuntimeFacts

_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")


def probe() -> RuntimeFacts:
    installed = [name for name in _DISTRIBUTIONS if _is_installed(name)]
    if not installed:
        return RuntimeFacts(name="onnx", reason="onnxruntime is not installed")
    if len(installed) > 1:
        return RuntimeFacts(
            name="onnx", reason="onnxruntime and onnxruntime-gpu are both installed; remove one"
        )
    import onnxruntime

    _run_one_node()
    return RuntimeFacts(name="onnx", version=onnxruntime.__version__, devices=("cpu",))


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


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
    sys.stdout.buffer.write(msgspec.json.encode(probe()))
