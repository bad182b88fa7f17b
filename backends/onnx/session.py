"""The inference session on the CPU, and the options of every session; a GPU's: `device_session`."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import onnxruntime as ort

from backends.onnx.adapter import LoadedAdapter
from backends.types import EngineError
from converters.artifact import GRAPH_FILE, Artifact

_SYSTEM_CPUS = pathlib.Path("/sys/devices/system/cpu")
_PROVIDERS = ["CPUExecutionProvider"]
# Where a graph that comes as bytes has its weights.
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_QUIET = 3  # errors only: warnings of the runtime are for its developers

# A daemon must not burn cores between steps; packing in parallel shortens the load. Denormals are
# left alone: flushing them gains nothing measurable and changes the arithmetic of this whole thread.
_CONFIG = {
    "session.intra_op.allow_spinning": "0",
    "session.prepack.enable_parallel": "1",
}

_Providers = Sequence[str | tuple[str, dict[str, str]]]


def physical_cores() -> int:
    """Cores this process may use, counting a core with several threads once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    usable = os.sched_getaffinity(0)
    siblings = {_sibling_list(cpu) for cpu in usable}
    return max(1, len(siblings))


def _sibling_list(cpu: int) -> str:
    path = _SYSTEM_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list"
    try:
        return path.read_text().strip()
    except OSError:
        return str(cpu)


def session_options(*, threads: int, force_fp32: bool) -> ort.SessionOptions:
    """`threads` 0: one per physical core. `force_fp32`: no integer activations in 4-bit nodes."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or physical_cores()
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = False  # shapes change from run to run
    options.log_severity_level = _QUIET
    for key, value in _CONFIG.items():
        options.add_session_config_entry(key, value)
    if force_fp32:
        options.add_session_config_entry("mlas.qnbit.force_fp32", "1")
    return options


class _AdaptedSession(ort.InferenceSession):
    """Keeps the adapter's arrays mapped as long as the runtime may read them."""

    def __init__(
        self,
        graph: bytes,
        folder: pathlib.Path,
        adapter: LoadedAdapter,
        options: ort.SessionOptions,
        providers: _Providers,
    ) -> None:
        self._arrays = adapter.arrays
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in adapter.arrays.values()]
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(folder))
        options.add_external_initializers(list(adapter.arrays), values)
        super().__init__(graph, options, providers=providers)


def opened(
    folder: pathlib.Path,
    adapter: LoadedAdapter | None,
    options: ort.SessionOptions,
    providers: _Providers,
) -> ort.InferenceSession:
    """On the artifact's graph, or on the adapter's over the artifact's weights."""
    if adapter is not None:
        return _AdaptedSession(adapter.graph, folder, adapter, options, providers)
    return ort.InferenceSession(str(folder / GRAPH_FILE), options, providers=providers)


def open_graph(
    graph: bytes,
    folder: pathlib.Path,
    adapter: LoadedAdapter | None,
    options: ort.SessionOptions,
) -> ort.InferenceSession:
    """On the CPU, of another graph over the artifact's weights. Raises EngineError("load")."""
    try:
        if adapter is not None:
            return _AdaptedSession(graph, folder, adapter, options, _PROVIDERS)
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(folder))
        return ort.InferenceSession(graph, options, providers=_PROVIDERS)
    except Exception as error:
        raise EngineError("load", f"ONNX Runtime refused the model: {error}") from error


def open_reference_session(
    folder: pathlib.Path, adapter: LoadedAdapter | None = None
) -> ort.InferenceSession:
    """On the CPU, for a run or two: nothing is packed, so loading costs neither time nor memory."""
    options = session_options(threads=0, force_fp32=True)
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return opened(folder, adapter, options, _PROVIDERS)
    except Exception as error:
        raise EngineError("load", f"ONNX Runtime refused the model: {error}") from error


def open_session(
    folder: pathlib.Path,
    artifact: Artifact,
    *,
    threads: int,
    precise: bool,
    adapter: LoadedAdapter | None = None,
) -> ort.InferenceSession:
    """On the CPU. Raises EngineError("load")."""
    options = session_options(threads=threads, force_fp32=precise and not artifact.precise)
    try:
        return opened(folder, adapter, options, _PROVIDERS)
    except Exception as error:
        # The runtime raises several unrelated classes; whatever it is, this model did not load.
        raise EngineError("load", f"ONNX Runtime refused the model: {error}") from error
