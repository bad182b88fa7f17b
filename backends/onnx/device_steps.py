"""Decode steps on a device: one id for each of neighbouring rows, all of it at fixed addresses.

What a step is given goes up in one copy and what it says comes back in one; logits and hidden states
stay until somebody asks. That also is what a CUDA graph needs, so a step may be recorded once and
replayed: nothing then depends on the host but the lengths, which the attention kernels read on the
device. The one scalar they read on the host, the longest row, becomes part of the recording; it
sizes launches and bounds nothing, so what is recorded there is as much as a row can hold, as
onnxruntime-genai does too. Each recording is compared with the same step run as it is, at the length
at which it is made. When rows grow they lie elsewhere, and all recordings are dropped.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from backends.onnx.device import Device
from backends.onnx.scores import DeviceLines, Scores

# Steps of one shape before it is recorded: memory is allocated and kernels are chosen in them.
EAGER_STEPS = 3
# Each holds some MB of launch parameters, and a binding.
MOST_CAPTURES = 32
GRAPH_ID = "gpu_graph_id"
NO_CAPTURE = -1  # run this one as it is
# Of the distance from the likeliest logit to the least that is told: sums differ by their order.
SAME = 0.05
_ALIGNMENT = 256

logger = logging.getLogger(__name__)

BindRows = Callable[[ort.IOBinding, int, int], None]


def run_options(graph_id: int) -> ort.RunOptions:
    options = ort.RunOptions()
    options.add_run_config_entry(GRAPH_ID, str(graph_id))
    return options


class _Area:
    """Arrays one behind the other on a device, and the same in the machine's memory."""

    def __init__(
        self, device: Device, shapes: Mapping[str, tuple[type[np.generic], tuple[int, ...]]]
    ) -> None:
        self.ends: dict[str, int] = {}
        self._offsets: dict[str, int] = {}
        size = 0
        for name, (item, shape) in shapes.items():
            self._offsets[name] = size
            self.ends[name] = size + int(np.prod(shape)) * np.dtype(item).itemsize
            size = -(-self.ends[name] // _ALIGNMENT) * _ALIGNMENT
        self._host = np.zeros(size, np.uint8)
        self._buffer = device.allocate(size)
        self._device = device
        self.arrays: dict[str, NDArray[Any]] = {
            name: self._host[self._offsets[name] : self.ends[name]].view(item).reshape(shape)
            for name, (item, shape) in shapes.items()
        }

    def address(self, name: str) -> int:
        return self._buffer.address + self._offsets[name]

    def offset(self, name: str) -> int:
        return self._offsets[name]

    def upload(self, size: int) -> None:
        self._device.write(self._buffer.address, self._host[:size])

    def download(self) -> None:
        self._device.read(self._buffer.address, self._host)


class _Recorded(NamedTuple):
    binding: ort.IOBinding
    options: ort.RunOptions
    graph_id: int


class DeviceSteps:
    """`is_capturing` may be set at any time where the session was opened for it."""

    def __init__(
        self,
        session: ort.InferenceSession,
        device: Device,
        *,
        most_rows: int,
        width: int,
        input_width: int,
        top_k: int,
        logits: DeviceLines,
        has_hidden: bool,
        may_capture: bool,
        bind_rows: BindRows,
    ) -> None:
        """`bind_rows` binds tables, keys and values and states of neighbouring rows."""
        self._session = session
        self._device = device
        self._bind_rows = bind_rows
        self._given = _Area(
            device,
            {
                "logit_rows": (np.int64, (most_rows,)),
                "seqlens_k": (np.int32, (most_rows,)),
                "inputs_embeds": (np.float32, (most_rows, 1, input_width)),
            },
        )
        self._said = _Area(
            device,
            {
                "topk_ids": (np.int64, (most_rows, top_k)),
                "topk_values": (np.float32, (most_rows, top_k)),
                "lse": (np.float32, (most_rows,)),
            },
        )
        self._given.arrays["logit_rows"][:] = np.arange(most_rows)
        self._logits = logits
        self._hidden = DeviceLines(device, most_rows if has_hidden else 1, width)
        self._has_hidden = has_hidden
        # Of a step that is not recorded, and of all that are.
        self._longest = np.zeros((), np.int32)
        self._capacity = np.zeros((), np.int32)
        self.may_capture = may_capture
        self.is_capturing = False
        self.problem = ""
        self._options = run_options(NO_CAPTURE) if may_capture else None
        self._bindings: OrderedDict[tuple[int, int], ort.IOBinding] = OrderedDict()
        self._seen: dict[tuple[int, int], int] = {}
        self._recorded: OrderedDict[tuple[int, int], _Recorded] = OrderedDict()
        self._last_id = 0

    @property
    def captures(self) -> int:
        return len(self._recorded)

    def run(
        self, first: int, embeddings: NDArray[np.float32], lengths: NDArray[np.int32], capacity: int
    ) -> Scores:
        """Of float32 [rows, 1, input width]. `lengths` are the rows' after this step, `capacity` the most
        that a row can hold where it lies now.
        """
        key = (first, len(lengths))
        self._give(embeddings, lengths, capacity)
        if self.is_capturing and self._is_ripe(key):
            try:
                if self._replay(key):
                    return self._scores(key[1])
            except Exception as error:  # noqa: BLE001  (the runtime raises several classes)
                self._give_up(f"capturing failed: {error}")
        self._run_plain(key)
        return self._scores(key[1])

    def _run_plain(self, key: tuple[int, int]) -> None:
        binding = self._binding(key)
        self._session.run_with_iobinding(binding, self._options)
        binding.synchronize_outputs()
        self._said.download()

    def forget(self) -> None:
        """The rows lie elsewhere now: what points to them is of no use."""
        self._bindings.clear()
        self._seen.clear()
        while self._recorded:
            self._release()

    def _give(
        self, embeddings: NDArray[np.float32], lengths: NDArray[np.int32], capacity: int
    ) -> None:
        count = len(lengths)
        self._logits.forget()
        self._hidden.forget()
        self._longest[...] = lengths.max()
        self._capacity[...] = capacity
        self._given.arrays["seqlens_k"][:count] = lengths - 1
        self._given.arrays["inputs_embeds"][:count] = embeddings
        row_bytes = embeddings[0].nbytes
        self._given.upload(self._given.offset("inputs_embeds") + count * row_bytes)

    def _scores(self, count: int) -> Scores:
        said = self._said.arrays
        return Scores(
            self._logits,
            said["topk_values"][:count],
            said["topk_ids"][:count],
            said["lse"][:count],
            self._hidden,
        )

    # ---- recorded steps ----

    def _is_ripe(self, key: tuple[int, int]) -> bool:
        self._seen[key] = self._seen.get(key, 0) + 1
        return self._seen[key] > EAGER_STEPS

    def _replay(self, key: tuple[int, int]) -> bool:
        """The step by its recording, made now if need be. False where that says something else.

        A step may run any number of times: it writes to the same places, and states it writes beside.
        """
        recorded = self._recorded.get(key)
        if recorded is not None:
            self._recorded.move_to_end(key)
            self._run_recorded(recorded)
            return True
        self._run_plain(key)
        expected = self._said.arrays["topk_values"][: key[1]].copy()
        self._run_recorded(self._recording(key))
        if _are_same(self._said.arrays["topk_values"][: key[1]], expected):
            return True
        self._give_up("what was captured says something else than the step itself")
        return False

    def _run_recorded(self, recorded: _Recorded) -> None:
        self._session.run_with_iobinding(recorded.binding, recorded.options)
        self._said.download()

    def _recording(self, key: tuple[int, int]) -> _Recorded:
        while len(self._recorded) >= MOST_CAPTURES:
            self._release()
        self._last_id += 1  # never one that had another shape
        binding = self._bound(key, self._capacity)
        recorded = _Recorded(binding, run_options(self._last_id), self._last_id)
        self._recorded[key] = recorded
        return recorded

    def _release(self) -> None:
        """The one that was not used for longest; older runtimes cannot let go of a graph."""
        key, recorded = self._recorded.popitem(last=False)
        self._seen.pop(key, None)
        release = getattr(self._session, "release_captured_graph", None)
        if release is not None:
            release(recorded.graph_id)

    def _give_up(self, problem: str) -> None:
        logger.warning("decode steps are not captured any more: %s", problem)
        self.problem = problem.partition("\n")[0]
        self.is_capturing = False
        self._recorded.clear()

    # ---- bindings ----

    def _binding(self, key: tuple[int, int]) -> ort.IOBinding:
        if key in self._bindings:
            self._bindings.move_to_end(key)
            return self._bindings[key]
        binding = self._bindings[key] = self._bound(key, self._longest)
        if len(self._bindings) > MOST_CAPTURES:
            self._bindings.popitem(last=False)
        return binding

    def _bound(self, key: tuple[int, int], total: NDArray[np.int32]) -> ort.IOBinding:
        first, count = key
        binding = self._session.io_binding()
        self._bind_rows(binding, first, count)
        binding.bind_input("total", "cpu", 0, np.int32, [], total.ctypes.data)
        for bind, area in ((binding.bind_input, self._given), (binding.bind_output, self._said)):
            for name, array in area.arrays.items():
                shape = [count, *array.shape[1:]]
                bind(name, self._device.word, 0, array.dtype.type, shape, area.address(name))
        lines = {"logits": self._logits} | ({"hidden": self._hidden} if self._has_hidden else {})
        for name, line in lines.items():
            shape = [count, line.shape[1]]
            binding.bind_output(name, self._device.word, 0, np.float32, shape, line.address)
        return binding


def _are_same(found: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    """The likeliest logits of some rows, likeliest first."""
    ranges = np.maximum(expected[:, :1] - expected[:, -1:], 1e-3)
    return bool((np.abs(found - expected) <= SAME * ranges).all())
