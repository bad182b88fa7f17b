"""A graph under construction: nodes, inputs, outputs and references into `weights.bin`.

Knows ONNX, not transformers. Weights appear only as external data, so that the proto stays small;
the bytes are written by `weights`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters.artifact import WEIGHTS_FILE
from converters.targets.onnx.pieces import Number, Piece

# RMSNormalization is in the standard from 23 on; the IR version is the one that came with it.
OPSET = 23
IR_VERSION = 11
MICROSOFT = "com.microsoft"

_ITEM_TYPES = {
    "uint8": TensorProto.UINT8,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float32": TensorProto.FLOAT,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
}


class GraphBuilder:
    """Values are named after what they hold: `scope` is put before the names of new ones."""

    def __init__(self, number: Number = "float32") -> None:
        """`number` is what activations are computed in."""
        self.scope = ""
        self.item: Number = number
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._block_sums: dict[tuple[str, int], str] = {}

    def input(self, name: str, item: str, shape: list[str | int]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, _ITEM_TYPES[item], shape))
        return name

    def output(self, name: str, item: str, shape: list[str | int]) -> str:
        self._outputs.append(helper.make_tensor_value_info(name, _ITEM_TYPES[item], shape))
        return name

    def node(
        self,
        operator: str,
        inputs: list[str],
        name: str,
        *,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """One node with one output, called `name` within the scope."""
        return self.nodes(operator, inputs, [self.scoped(name)], domain=domain, **attributes)[0]

    def nodes(
        self,
        operator: str,
        inputs: list[str],
        outputs: list[str],
        *,
        domain: str = "",
        **attributes: Any,
    ) -> list[str]:
        """One node; `outputs` are whole names, "" leaves one out, trailing "" inputs are cut."""
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        label = next(name for name in outputs if name)
        self._nodes.append(
            helper.make_node(operator, inputs, outputs, label, domain=domain, **attributes)
        )
        return outputs

    def scoped(self, name: str) -> str:
        return f"{self.scope}.{name}" if self.scope else name

    def weight(self, piece: Piece, location: str = WEIGHTS_FILE) -> str:
        """The initializer of that name, whose bytes are at the piece's place in the file."""
        if piece.name not in self._initializers:
            tensor = TensorProto(
                name=piece.name, data_type=_ITEM_TYPES[piece.item], dims=list(piece.shape)
            )
            tensor.data_location = TensorProto.EXTERNAL
            places = {"location": location, "offset": piece.offset, "length": piece.nbytes}
            for key, value in places.items():
                tensor.external_data.add(key=key, value=str(value))
            self._initializers[piece.name] = tensor
        return piece.name

    def integers(self, *values: int) -> str:
        """A constant int64 vector, one for all who ask for the same numbers."""
        name = "i64." + ".".join(map(str, values))
        return self.constant(name, np.array(values, np.int64))

    def number(self, value: float, item: Number | None = None) -> str:
        """A constant scalar of the activations' type, or of the given one."""
        item = item or self.item
        label = "f32" if item == "float32" else "f16"
        return self.constant(f"{label}.{value!r}", np.array(value, np.dtype(item)))

    def cast(self, x: str, item: Number, name: str) -> str:
        return self.node("Cast", [x], name, to=_ITEM_TYPES[item])

    def widened(self, weight: str) -> str:
        """A weight in what activations are computed in.

        NOTE: the runtime goes back from the outputs and takes the later of two inputs first. In front of
        all others these nodes run each right before their product, and only one is there at a time.
        """
        output = self.nodes("Cast", [weight], [f"{weight}.widened"], to=_ITEM_TYPES[self.item])[0]
        self._nodes.insert(0, self._nodes.pop())
        return output

    def as_activations(self, x: str, name: str) -> str:
        """From fp32 to what activations are computed in."""
        return x if self.item == "float32" else self.cast(x, self.item, name)

    def as_float32(self, x: str, name: str) -> str:
        return x if self.item == "float32" else self.cast(x, "float32", name)

    def scalar(self, value: int) -> str:
        """A constant int64 scalar."""
        return self.constant(f"i64.scalar.{value}", np.array(value, np.int64))

    def constant(self, name: str, array: np.ndarray) -> str:
        """A constant within the proto, once per name."""
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def block_sums(self, x: str, blocks: int, block: int) -> str:
        """Σ over each block of `x` [1|B, S, blocks·block]; once per input, whoever asks.

        NOTE: the axis is not negative because ReduceSum then keeps it when there are no rows.
        """
        key = (x, block)
        if key not in self._block_sums:
            shape = self.integers(0, 0, blocks, block)
            cut = self.nodes("Reshape", [x, shape], [f"{x}.blocks{block}"])[0]
            axis = self.integers(3)
            sums = self.nodes("ReduceSum", [cut, axis], [f"{x}.sums{block}"], keepdims=0)[0]
            self._block_sums[key] = sums
        return self._block_sums[key]

    def model(self, name: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, list(self._initializers.values())
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="hearth"
        )
