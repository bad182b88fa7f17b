"""One run of the graph, everything bound by raw pointer and kept bound where it can be.

A decode run works on fixed buffers only, so its binding is made once per range of rows; a prefill
chunk has a new shape each time and rebinds its small inputs and outputs, but not the KV rows.

The graph's contract (dims B rows, S ids, R wanted positions, K top-k, V vocabulary):
in `inputs_embeds` f32 [B,S,E] (wider where blocks have inputs of their own), `seqlens_k` i32 [B]
(ids of the row after this run, minus 1), `total` i32 [] (most ids of any row), `logit_rows` i64 [R]
(flat index into B*S), rotary tables, and per block `past_key.i`, `past_value.i`; out `logits` f32 [R,V], `topk_values` f32 [R,K], `topk_ids` i64 [R,K],
`lse` f32 [R], in newer artifacts `hidden` f32 [R,E], and `present_*`, bound to the memory of
`past_*`. Rotary tables, keys and values are f16 where the artifact's `key_value_dtype` says so.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from backends.onnx.device import Device
from backends.onnx.device_steps import NO_CAPTURE, DeviceSteps, run_options
from backends.onnx.image_tables import ImageTables
from backends.onnx.planes import Plane
from backends.onnx.rope import rotary_inputs
from backends.onnx.rows import KeyValueRows
from backends.onnx.scores import DeviceLines, Scores
from backends.types import EngineError
from converters.artifact import Artifact

# More than all runs of neighbours among 8 rows; each binding is a few KB.
MAX_BINDINGS = 64
_SMALL_INPUTS = ("inputs_embeds", "seqlens_k", "total", "logit_rows")


def key_value_planes(artifact: Artifact) -> list[Plane]:
    """The cached tensors that the artifact's graph has, in block order."""
    planes: list[Plane] = []
    heads = artifact.kv_heads
    if len(heads) == 1:
        heads = heads * artifact.block_count
    if len(heads) != artifact.block_count:
        raise EngineError("load", "the artifact gives kv heads for another number of blocks")
    value_size = artifact.value_size or artifact.head_size
    for block, count in enumerate(heads):
        if count == 0:
            continue
        planes.append(Plane(f"past_key.{block}", f"present_key.{block}", count, artifact.head_size))
        planes.append(Plane(f"past_value.{block}", f"present_value.{block}", count, value_size))
    return planes


class BoundGraph:
    """A session together with the memory its runs work on. Not for use from two threads."""

    def __init__(
        self,
        session: ort.InferenceSession,
        artifact: Artifact,
        rows: KeyValueRows,
        *,
        most_rows: int,
        most_scores: int,
        device: Device | None = None,
        may_capture: bool = False,
    ) -> None:
        """A run is over `most_rows` rows at most and scores `most_scores` positions at most.

        `device` is where the session runs and the rows lie; None is the CPU and its own memory.
        `may_capture`: the session was opened for CUDA graphs.
        """
        if artifact.onnx is None:
            raise EngineError("load", "the artifact was not made for ONNX Runtime")
        self._session = session
        self._rows = rows
        self._key_value_dtype = np.dtype(artifact.onnx.key_value_dtype)
        self._device = device
        self._word = device.word if device else "cpu"
        self._tables = {
            name: ort.OrtValue.ortvalue_from_numpy(table, self._word, 0)
            for name, table in rotary_inputs(artifact, rows.capacity, rows.capacity).items()
        }
        self._check_inputs()
        self._bindings: OrderedDict[tuple[int, int, bool], ort.IOBinding] = OrderedDict()
        self._embeddings = np.zeros((most_rows, 1, artifact.onnx.input_width), np.float32)
        self._lengths = np.zeros(most_rows, np.int32)
        count = max(most_scores, most_rows)
        self._total = np.zeros((), np.int32)
        self._wanted = np.zeros(count, np.int64)
        top_k = min(artifact.onnx.top_k, artifact.vocabulary)
        self._lines = DeviceLines(device, count, artifact.vocabulary) if device else None
        self._scores = Scores(
            self._lines or np.zeros((count, artifact.vocabulary), np.float32),
            np.zeros((count, top_k), np.float32),
            np.zeros((count, top_k), np.int64),
            np.zeros(count, np.float32),
            np.zeros((count, artifact.embedding_length), np.float32),
        )
        self.most_rows = most_rows
        self.has_hidden = "hidden" in {value.name for value in session.get_outputs()}
        self._options = run_options(NO_CAPTURE) if may_capture else None
        self.steps: DeviceSteps | None = None
        if device is not None and self._lines is not None:
            self.steps = DeviceSteps(
                session,
                device,
                most_rows=most_rows,
                width=artifact.embedding_length,
                input_width=artifact.onnx.input_width,
                top_k=top_k,
                logits=self._lines,
                has_hidden=self.has_hidden,
                may_capture=may_capture,
                bind_rows=self._bind_rows,
            )

    def _check_inputs(self) -> None:
        views = (*self._rows.views(0, 1), *self._rows.states.views(0, 1))
        known = {*_SMALL_INPUTS, *self._tables, *(view.past for view in views)}
        wrong = known ^ {value.name for value in self._session.get_inputs()}
        if wrong:
            names = ", ".join(sorted(wrong))
            raise EngineError("load", f"graph and artifact disagree about the inputs {names}")

    def run(
        self,
        first_row: int,
        embeddings: NDArray[np.float32],
        totals: Sequence[int],
        wanted: Sequence[int],
        tables: ImageTables | None = None,
    ) -> Scores:
        """Feeds float32 [B, S, E] to the B rows from `first_row` on.

        `totals` are the rows' lengths afterwards, `wanted` flat positions of B*S to score (none: the
        head is skipped). B > 1 only with S = 1: the attention node knows no ragged chunks. A row with
        `tables` of its own runs alone, on a binding that is not kept.
        """
        count = len(totals)
        if self._device is not None and not wanted:
            # CUDA's experts refuse to work on nothing, and one line of the head costs little there.
            wanted = [embeddings.shape[1] - 1]
        self._lengths[:count] = totals
        self._lengths[:count] -= 1
        self._total[...] = max(totals)
        self._wanted[: len(wanted)] = wanted
        self.reserve(max(totals))
        is_decode = embeddings.shape[1] == 1 and list(wanted) == list(range(count))
        is_decode = is_decode and tables is None
        if self.steps is not None and is_decode:
            lengths = np.array(totals, np.int32)
            found = self.steps.run(first_row, embeddings, lengths, self._rows.stride)
            self._rows.states.commit(first_row, count)
            return found
        if self._lines is not None:
            self._lines.forget()
        # What is bound from the host for a device is copied when it is bound, so never kept.
        is_decode = is_decode and self._device is None
        if tables is None:
            binding = self._binding(first_row, count, is_decode=is_decode)
        else:
            binding = self._session.io_binding()
            self._bind_rows(binding, first_row, count, tables.values(max(totals)))
        if is_decode:
            self._embeddings[:count] = embeddings
        else:
            self._bind_small(binding, embeddings, count, len(wanted))
        if self._device is not None:
            binding.synchronize_inputs()
        self._session.run_with_iobinding(binding, self._options)
        if self._device is not None:
            binding.synchronize_outputs()
        self._rows.states.commit(first_row, count)
        return self._scores.first(len(wanted))

    def reserve(self, positions: int) -> None:
        """Before a run, of this graph or another, that makes a row so long."""
        if self._rows.reserve(positions):
            self._bindings.clear()  # they point to where the rows were
            if self.steps is not None:
                self.steps.forget()

    def _bind_small(
        self, binding: ort.IOBinding, embeddings: NDArray[np.float32], count: int, wanted: int
    ) -> None:
        """Everything but tables and KV rows."""
        bind_array(binding.bind_input, "inputs_embeds", embeddings)
        bind_array(binding.bind_input, "seqlens_k", self._lengths[:count])
        bind_array(binding.bind_input, "total", self._total)
        bind_array(binding.bind_input, "logit_rows", self._wanted[:wanted])
        scores = self._scores.first(wanted)
        self._bind_logits(binding, scores)
        bind_array(binding.bind_output, "topk_values", scores.values)
        bind_array(binding.bind_output, "topk_ids", scores.ids)
        bind_array(binding.bind_output, "lse", scores.lse)
        if self.has_hidden and isinstance(scores.hidden, np.ndarray):
            bind_array(binding.bind_output, "hidden", scores.hidden)

    def _bind_logits(self, binding: ort.IOBinding, scores: Scores) -> None:
        if isinstance(scores.logits, np.ndarray):
            bind_array(binding.bind_output, "logits", scores.logits)
            return
        assert self._lines is not None
        shape = [len(scores.lse), scores.vocabulary]
        binding.bind_output("logits", self._word, 0, np.float32, shape, self._lines.address)

    def _binding(self, first_row: int, count: int, *, is_decode: bool) -> ort.IOBinding:
        """A binding whose KV rows and tables are in place already; for decode the rest too."""
        key = (first_row, count, is_decode)
        if key in self._bindings:
            self._bindings.move_to_end(key)
            return self._bindings[key]
        binding = self._session.io_binding()
        self._bind_rows(binding, first_row, count)
        if is_decode:
            self._bind_small(binding, self._embeddings[:count], count, count)
        self._bindings[key] = binding
        if len(self._bindings) > MAX_BINDINGS:
            self._bindings.popitem(last=False)
        return binding

    def _bind_rows(
        self,
        binding: ort.IOBinding,
        first_row: int,
        count: int,
        tables: Mapping[str, ort.OrtValue] | None = None,
    ) -> None:
        """Tables (the common ones unless given), keys and values, states."""
        for name, table in (tables or self._tables).items():
            binding.bind_ortvalue_input(name, table)
        for view in self._rows.views(first_row, count):
            place = (self._word, 0, self._key_value_dtype.type, list(view.shape), view.address)
            binding.bind_input(view.past, *place)
            binding.bind_output(view.present, *place)
        for state in self._rows.states.views(first_row, count):
            place = (self._word, 0, np.float32, list(state.shape))
            binding.bind_input(state.past, *place, state.past_address)
            binding.bind_output(state.present, *place, state.present_address)

    def close(self) -> None:
        self._bindings.clear()
        self.steps = None
        del self._session


def bind_array(
    bind: Callable[[str, str, int, type, list[int], int], None],
    name: str,
    array: NDArray[np.generic],
) -> None:
    """`bind` is a binding's `bind_input` or `bind_output`; the array must outlive the run."""
    bind(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)
