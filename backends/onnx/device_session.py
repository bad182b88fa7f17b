"""The inference session on a device, and whether its decode steps may become CUDA graphs."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import onnxruntime as ort

from backends.onnx.adapter import LoadedAdapter
from backends.onnx.cuda_trial import PROVIDER, preload
from backends.onnx.device import Device
from backends.onnx.session import open_session, opened, session_options
from backends.types import EngineError
from converters.artifact import Artifact

# How the runtime says that a graph has nodes, or copies, that cannot be recorded.
_NOT_RECORDABLE = "graph capture feature"


class DeviceSession(NamedTuple):
    """`obstacle` says why steps cannot be captured; empty where they may be tried."""

    session: ort.InferenceSession
    obstacle: str


def open_device_session(
    device: Device,
    folder: pathlib.Path,
    artifact: Artifact,
    *,
    adapter: LoadedAdapter | None = None,
    threads: int = 0,
    obstacle: str = "",
) -> DeviceSession:
    """`obstacle`: why capturing is not to be tried. Raises EngineError: "device", or "load"."""
    if device.word != "cuda":
        session = open_session(folder, artifact, threads=threads, precise=False, adapter=adapter)
        return DeviceSession(session, obstacle)
    preload()
    if not obstacle:
        try:
            return DeviceSession(_open(folder, adapter, has_graphs=True), "")
        except EngineError as error:
            # Said before any weights are copied, so opening it again costs little.
            if _NOT_RECORDABLE not in str(error):
                raise
            obstacle = "the runtime cannot record this graph"
    return DeviceSession(_open(folder, adapter, has_graphs=False), obstacle)


def _open(
    folder: pathlib.Path, adapter: LoadedAdapter | None, *, has_graphs: bool
) -> ort.InferenceSession:
    """NOTE: the runtime takes the CPU where CUDA does not load, so what it took is looked at."""
    options = session_options(threads=0, force_fp32=False)
    # The hand-tuned product of fp16 with codes, for the matrices whose shape it can do.
    options.add_session_config_entry("ep.cuda.fpa_intb_gemm", "1")
    try:
        session = opened(
            folder, adapter, options, [(PROVIDER, cuda_options(has_graphs=has_graphs))]
        )
    except Exception as error:
        raise EngineError("device", f"the GPU could not load the model: {error}") from error
    if PROVIDER not in session.get_providers():
        raise EngineError("device", "ONNX Runtime could not load its CUDA provider")
    return session


def cuda_options(*, has_graphs: bool = False) -> dict[str, str]:
    """Memory is taken as it is asked for, not doubled; fp32 sums stay fp32."""
    return {
        "device_id": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "enable_cuda_graph": "1" if has_graphs else "0",
    }
