"""Runs over images whose positions see each other, on a second session over the same weights.

It is opened at the first such image and packs nothing: weights are read from the mapped file, so it
costs no second copy of them, and a run costs more than one of the same ids (onnx.md). On a device these
runs are the CPU's: what the row holds is read back before, and what they write is copied up after.
"""

from __future__ import annotations

import pathlib

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from backends.engine.positions import Layout
from backends.onnx.adapter import load_adapter
from backends.onnx.binding import bind_array, key_value_planes
from backends.onnx.open_masks import bias_input, open_masks
from backends.onnx.rope import rotary_inputs
from backends.onnx.rows import KeyValueRows, Row
from backends.onnx.session import open_graph, session_options
from backends.types import EngineError, Load
from converters.artifact import GRAPH_FILE, Artifact

# Of scores that a window hides; finite in fp16, and far below any other.
_HIDDEN = -6e4


class BidirectionalRuns:
    """`rows`: where keys and values lie, on a device if `is_on_device`."""

    def __init__(
        self,
        load: Load,
        artifact: Artifact,
        rows: KeyValueRows,
        *,
        is_on_device: bool = False,
    ) -> None:
        self._load = load
        self._folder = pathlib.Path(load.artifact)
        self._artifact = artifact
        self._rows = rows
        self._is_on_device = is_on_device
        self._session: ort.InferenceSession | None = None
        self._windows: tuple[int, ...] = ()

    @property
    def obstacle(self) -> str:
        """Why this model's positions can never see each other; "" where they can."""
        if self._rows.states:
            return "images whose positions see each other are not supported for models with states"
        return ""

    def run(self, row: Row, embeddings: NDArray[np.float32], layout: Layout = ()) -> None:
        """Feeds float32 [S, E] behind what `row` holds and writes their keys and values.

        Room for them must be reserved, and the row's length is the caller's to change. Raises what the
        runtime raises, EngineError("load").
        """
        total = row.length + len(embeddings)
        if not self._is_on_device:
            self._run(self._rows, row.index, row.length, embeddings, layout)
            return
        host = self._host_rows(total)
        try:
            host.write_block(
                Row(0, total), 0, self._rows.read_block(row, 0, row.length), row.length
            )
            self._run(host, 0, row.length, embeddings, layout)
            written = host.read_block(Row(0, total), row.length, total)
            self._rows.write_block(row, row.length, written, len(embeddings))
        finally:
            host.close()

    def _host_rows(self, positions: int) -> KeyValueRows:
        """One row in the machine's own memory."""
        assert self._artifact.onnx is not None
        return KeyValueRows(
            key_value_planes(self._artifact),
            rows=1,
            capacity=positions,
            dtype=np.dtype(self._artifact.onnx.key_value_dtype),
            budget_bytes=1 << 62,
        )

    def _run(
        self,
        rows: KeyValueRows,
        index: int,
        past: int,
        embeddings: NDArray[np.float32],
        layout: Layout,
    ) -> None:
        session = self._opened()
        inputs = self._inputs(past, np.ascontiguousarray(embeddings), layout)
        asked = {each.name for each in session.get_inputs()}
        binding = session.io_binding()
        for name, array in inputs.items():
            if name in asked:
                bind_array(binding.bind_input, name, array)
        assert self._artifact.onnx is not None
        number = np.dtype(self._artifact.onnx.key_value_dtype).type
        for view in rows.views(index, 1):
            place = ("cpu", 0, number, list(view.shape), view.address)
            binding.bind_input(view.past, *place)
            binding.bind_output(view.present, *place)
        session.run_with_iobinding(binding)

    def _inputs(
        self, past: int, embeddings: NDArray[np.float32], layout: Layout
    ) -> dict[str, NDArray[np.generic]]:
        assert self._artifact.onnx is not None
        total = past + len(embeddings)
        number = np.dtype(self._artifact.onnx.key_value_dtype)
        inputs: dict[str, NDArray[np.generic]] = {
            "inputs_embeds": embeddings[None],
            "seqlens_k": np.array([total - 1], np.int32),
            "total": np.array(total, np.int32),
            **rotary_inputs(self._artifact, total, self._rows.capacity, layout),
        }
        for window in self._windows:
            inputs[bias_input(window)] = window_bias(past, total, window).astype(number)
        return inputs

    def _opened(self) -> ort.InferenceSession:
        if self._session is None:
            adapter = load_adapter(self._load.adapters, self._artifact, self._folder)
            data = adapter.graph if adapter else self._graph_bytes()
            opened, self._windows = open_masks(data)
            options = session_options(threads=self._load.threads, force_fp32=False)
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.enable_cpu_mem_arena = False  # what a run took goes back
            self._session = open_graph(opened, self._folder, adapter, options)
        return self._session

    def _graph_bytes(self) -> bytes:
        try:
            return (self._folder / GRAPH_FILE).read_bytes()
        except OSError as error:
            raise EngineError("load", f"the model's graph cannot be read: {error}") from error

    def close(self) -> None:
        self._session = None


def window_bias(past: int, total: int, window: int) -> NDArray[np.float32]:
    """[1, 1, total - past, total]: hides what lies `window` positions or more before.

    As llama.cpp's mask of runs that are not causal: what comes after is seen, however far.
    """
    distance = np.arange(past, total)[:, None] - np.arange(total)[None]
    return np.where(distance >= window, np.float32(_HIDDEN), np.float32(0))[None, None]
