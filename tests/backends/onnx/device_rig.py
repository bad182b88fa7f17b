"""An engine on a device that is the machine's own memory: the path of a GPU, without one."""

from __future__ import annotations

import pathlib
from typing import Any

from backends.onnx.device import Device, HostDevice
from backends.onnx.device_loading import load_on_device
from backends.onnx.encoder import OnnxEncoder
from backends.onnx.engine import OnnxEngine
from backends.types import Load
from converters.artifact import read_artifact

CONTEXT = 400


def loaded(
    folder: pathlib.Path, device: Device | None = None, **fields
) -> OnnxEngine | OnnxEncoder:
    wanted: dict[str, Any] = {"rows": 4, "context_length": CONTEXT, "threads": 1} | fields
    load = Load(request_id="l", backend="onnx", artifact=str(folder), device="cuda", **wanted)
    artifact = read_artifact(folder)
    assert artifact.onnx is not None
    return load_on_device(load, folder, artifact, artifact.onnx, device or HostDevice())


def on_device(folder: pathlib.Path, device: Device | None = None, **fields) -> OnnxEngine:
    engine = loaded(folder, device, **fields)
    assert isinstance(engine, OnnxEngine)
    return engine
