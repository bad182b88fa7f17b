"""Windows of patches side by side, so that a kernel for whole tiles attends within each of them.

A mask over all patches would be a square of them for each head: gigabytes for a large image. Windows are
runs of equal `segments`; the smaller ones, at the edges of an image, are filled up with patches that no
one sees. One tile only.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from converters.targets.onnx.encoder import MASKED
from converters.targets.onnx.graph import GraphBuilder

_END = 1 << 62


class Windows:
    """Made once for all blocks: W windows of M patches at most. `bias` is [W, 1, M, M]."""

    def __init__(self, graph: GraphBuilder, width: int, patches: str | int) -> None:
        """`width`: numbers of a patch."""
        self._graph = graph
        graph.input("segments", "int64", [patches])
        count = graph.node("Shape", ["segments"], "patch_count")
        starts = self._starts()
        first = self._flat(graph.node("NonZero", [starts], "window_first_row"), "window_first")
        sizes = self._sizes(first, count)
        most = graph.node("ReduceMax", [sizes], "window_most", keepdims=0)
        steps = graph.node("Range", [graph.scalar(0), most, graph.scalar(1)], "window_steps")
        self._index = self._gathered(first, steps, count)
        self._slots = self._places(starts, first, count, most)
        column = graph.node("Unsqueeze", [most, graph.integers(0)], "window_most_row")
        parts = [graph.integers(-1), column, graph.integers(width)]
        self._shape = graph.node("Concat", parts, "window_shape", axis=0)
        self.bias = self._bias(sizes, steps, column)

    def packed(self, x: str, label: str) -> str:
        """[1, P, E] → [W, M, E]."""
        rows = self._graph.node("Gather", [x, self._index], f"{label}_rows", axis=1)
        return self._graph.node("Reshape", [rows, self._shape], f"{label}_windows")

    def unpacked(self, x: str, label: str) -> str:
        """[W, M, E] → [1, P, E]."""
        graph = self._graph
        flat = graph.node("Flatten", [x], f"{label}_flat", axis=2)
        rows = graph.node("Gather", [flat, self._slots], f"{label}_patches", axis=0)
        return graph.node("Unsqueeze", [rows, graph.integers(0)], f"{label}_tile")

    def _starts(self) -> str:
        """Bool [P]: whether a window begins there."""
        graph = self._graph
        zero, one, last, end = (graph.integers(each) for each in (0, 1, -1, _END))
        before = graph.node("Slice", ["segments", zero, last], "segments_before")
        after = graph.node("Slice", ["segments", one, end], "segments_after")
        is_same = graph.node("Equal", [after, before], "segment_goes_on")
        begins = graph.node("Not", [is_same], "segment_begins")
        true = graph.constant("first_begins", np.array([True]))
        return graph.node("Concat", [true, begins], "window_starts", axis=0)

    def _sizes(self, first: str, count: str) -> str:
        """[W]: how many patches each window has."""
        graph = self._graph
        later = graph.node(
            "Slice", [first, graph.integers(1), graph.integers(_END)], "window_later"
        )
        ends = graph.node("Concat", [later, count], "window_ends", axis=0)
        return graph.node("Sub", [ends, first], "window_sizes")

    def _gathered(self, first: str, steps: str, count: str) -> str:
        """[W, M]: which patch stands where; behind the window's last any one, but one there is."""
        graph = self._graph
        column = graph.node("Unsqueeze", [first, graph.integers(1)], "window_first_column")
        index = graph.node("Add", [column, steps], "window_reach")
        last = graph.node("Sub", [count, graph.integers(1)], "patch_last")
        return graph.node("Min", [index, last], "window_index")

    def _places(self, starts: str, first: str, count: str, most: str) -> str:
        """[P]: where a patch stands among all windows' places."""
        graph = self._graph
        numbers = graph.node("Cast", [starts], "window_starts_int", to=TensorProto.INT64)
        counted = graph.node("CumSum", [numbers, graph.scalar(0)], "window_counted")
        window = graph.node("Sub", [counted, graph.integers(1)], "window_of_patch")
        number = graph.node("Squeeze", [count], "patch_count_scalar")
        every = graph.node("Range", [graph.scalar(0), number, graph.scalar(1)], "patch_places")
        begin = graph.node("Gather", [first, window], "patch_window_first")
        rank = graph.node("Sub", [every, begin], "patch_rank")
        base = graph.node("Mul", [window, most], "patch_window_base")
        return graph.node("Add", [base, rank], "patch_slots")

    def _bias(self, sizes: str, steps: str, most: str) -> str:
        graph = self._graph
        column = graph.node("Unsqueeze", [sizes, graph.integers(1)], "window_size_column")
        is_there = graph.node("Less", [steps, column], "window_is_there")
        wide = graph.node("Unsqueeze", [is_there, graph.integers(1, 2)], "window_keys")
        seen, masked = graph.number(0.0), graph.number(MASKED[graph.item])
        row = graph.node("Where", [wide, seen, masked], "window_key_bias")
        parts = [graph.integers(1, 1), most, graph.integers(1)]
        shape = graph.node("Concat", parts, "window_bias_shape", axis=0)
        return graph.node("Expand", [row, shape], "window_bias")

    def _flat(self, x: str, label: str) -> str:
        return self._graph.node("Reshape", [x, self._graph.integers(-1)], label)
