"""A vision tower on ONNX Runtime, on the CPU or on a GPU.

The graph's contract: `converters.vision_artifact`. Matrices of half-precision numbers are widened one
after the other in each run, and never in advance: a tower would take twice its file all the time.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from backends.onnx.cuda_trial import PROVIDER, preload
from backends.onnx.device_session import cuda_options
from backends.onnx.session import session_options
from backends.types import EngineError
from converters.artifact import GRAPH_FILE, ArtifactError
from converters.vision_artifact import VisionArtifact, read_vision

_CPU = "CPUExecutionProvider"
# Else all weights would be widened as the graph is opened.
_NOT_IN_ADVANCE = ["ConstantFolding"]


class OnnxTower:
    """`Tower` of backends.vision.plan."""

    def __init__(self, session: ort.InferenceSession, artifact: VisionArtifact) -> None:
        self._session: ort.InferenceSession | None = session
        self._artifact = artifact
        self._options: ort.RunOptions | None = None
        self._row_break: NDArray[np.float32] | None = None
        self._outputs = [value.name for value in session.get_outputs()]
        self._is_on_cpu = PROVIDER not in session.get_providers()
        given = {value.name for value in session.get_inputs()}
        if given != set(artifact.inputs):
            raise EngineError("load", "graph and vision artifact disagree about the inputs")
        if artifact.has_row_break != ("row_break" in self._outputs):
            raise EngineError("load", "graph and vision artifact disagree about the outputs")

    @property
    def artifact(self) -> VisionArtifact:
        return self._artifact

    @property
    def row_break(self) -> NDArray[np.float32] | None:
        """Known after the first run."""
        return self._row_break

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        """`embeddings` [N, L, W]. Raises EngineError: "cancelled" after `interrupt`, else "internal"."""
        session = self._session
        if session is None:
            raise EngineError("internal", "the vision tower is closed")
        feeds = {name: inputs[name] for name in self._artifact.inputs}
        self._options = options = _run_options(self._is_on_cpu)
        try:
            found = session.run(self._outputs, feeds, options)
        except Exception as error:
            # The runtime raises several unrelated classes; this image failed, nothing else did.
            if options.terminate:
                raise EngineError("cancelled", "the image's run was interrupted") from error
            raise EngineError("internal", f"the vision tower's run failed: {error}") from error
        finally:
            self._options = None
        by_name = dict(zip(self._outputs, found, strict=True))
        if self._artifact.has_row_break:
            self._row_break = np.asarray(by_name["row_break"], np.float32)
        embeddings: NDArray[np.float32] = np.asarray(by_name["embeddings"], np.float32)
        if not np.isfinite(embeddings).all():
            raise EngineError("internal", "the vision tower gave numbers that are not finite")
        return embeddings

    def interrupt(self) -> None:
        options = self._options
        if options is not None:
            options.terminate = True

    def close(self) -> None:
        self._session = None


def _run_options(is_on_cpu: bool) -> ort.RunOptions:
    """What a run took is given back after it: images are rare, and of many sizes."""
    options = ort.RunOptions()
    if is_on_cpu:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def open_tower(folder: pathlib.Path, *, device: str = "cpu", threads: int = 0) -> OnnxTower:
    """On a `VisionArtifact`'s folder; `device` "cpu" or "cuda". Raises EngineError: "load" or "device"."""
    try:
        artifact = read_vision(folder)
    except ArtifactError as error:
        raise EngineError("load", str(error)) from error
    options = session_options(threads=threads, force_fp32=False)
    providers: list[str | tuple[str, dict[str, str]]] = [_CPU]
    if device == "cuda":
        preload()
        providers = [(PROVIDER, cuda_options())]
    else:
        _leave_weights(options, artifact)
    return OnnxTower(_opened(folder, options, providers), artifact)


def _leave_weights(options: ort.SessionOptions, artifact: VisionArtifact) -> None:
    """Keeps them where the file is mapped. Higher levels of optimisation widen them all in advance;
    products of many patches gain nothing from packing, and codes are not multiplied without.
    """
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if not any("codes" in record.form for record in artifact.tensors):
        options.add_session_config_entry("session.disable_prepacking", "1")


def _opened(
    folder: pathlib.Path,
    options: ort.SessionOptions,
    providers: list[str | tuple[str, dict[str, str]]],
) -> ort.InferenceSession:
    try:
        session = ort.InferenceSession(
            str(folder / GRAPH_FILE),
            options,
            providers=providers,
            disabled_optimizers=_NOT_IN_ADVANCE,
        )
    except Exception as error:
        raise EngineError("load", f"ONNX Runtime refused the vision tower: {error}") from error
    if providers != [_CPU] and PROVIDER not in session.get_providers():
        raise EngineError("device", "ONNX Runtime could not load its CUDA provider")
    return session
