"""What every graph is made of: products, norms and the residual stream, over one layout.

Knows the layout's names and ONNX's operators; not which architecture it serves.
"""

from __future__ import annotations

from converters.architectures.model import ModelShape
from converters.architectures.parts import Linear, Norm
from converters.targets.onnx.graph import MICROSOFT, GraphBuilder
from converters.targets.onnx.layout import Layout
from converters.targets.onnx.linear import linear

# The runtime's own name for RMSNormalization. On CUDA its optimizer takes such a norm of queries
# and keys into the attention node, whose inputs for them the CPU's kernel refuses.
FUSED_NORM = "SimplifiedLayerNormalization"


class Stream:
    """The residual stream: `value`, and a `branch` that is not added to it yet."""

    def __init__(self, value: str, branch: str = "") -> None:
        self.value = value
        self.branch = branch


class Parts:
    """Shared by all builders of one graph."""

    def __init__(self, model: ModelShape, layout: Layout) -> None:
        self.model = model
        self.layout = layout
        self.graph = GraphBuilder(layout.number)

    def linear(self, x: str, matrix: Linear) -> str:
        """From x [.., columns] to [.., rows], bias included."""
        return linear(self.graph, self.layout, x, matrix.stem)

    def vector(self, name: str) -> str:
        """The initializer of a placed vector or array; "" stays ""."""
        return self.graph.weight(self.layout.vectors[name].piece) if name else ""

    def settled(self, stream: Stream) -> str:
        """The stream with its open branch added."""
        if stream.branch:
            total = f"{stream.branch}.added"
            stream.value = self.graph.nodes("Add", [stream.value, stream.branch], [total])[0]
            stream.branch = ""
        return stream.value

    def add(self, stream: Stream, branch: str, post_norm: Norm | None, scale: float) -> None:
        """Leaves the branch open: the next norm adds it in the same pass over memory."""
        if post_norm:
            branch = self.norm(branch, post_norm)
        if scale != 1.0:
            branch = self.graph.node("Mul", [branch, self.graph.number(scale)], f"{branch}.scaled")
        stream.value, stream.branch = self.settled(stream), branch

    def stream_norm(self, stream: Stream, norm: Norm | None) -> str:
        """The normed stream; the stream itself where there is no norm."""
        if norm is None:
            return self.settled(stream)
        if not stream.branch:
            return self.norm(stream.value, norm)
        weights = [self.vector(norm.weight), self.vector(norm.bias)]
        normed, total = self.graph.scoped(label_of(norm)), f"{stream.branch}.added"
        kind = "LayerNormalization" if norm.is_centered else "SimplifiedLayerNormalization"
        self.graph.nodes(
            f"Skip{kind}",
            [stream.value, stream.branch, *(weights if norm.is_centered else weights[:1])],
            [normed, "", "", total],
            domain=MICROSOFT,
            epsilon=self.model.epsilon,
        )
        stream.value, stream.branch = total, ""
        return normed

    def norm(self, x: str, norm: Norm, *, of_head: bool = False) -> str:
        """Over the last axis. `of_head`: of queries or keys, right before their attention."""
        operator = "LayerNormalization" if norm.is_centered else "RMSNormalization"
        if of_head and self.layout.number == "float16" and not norm.is_centered:
            operator = FUSED_NORM
        inputs = [x, self.vector(norm.weight), self.vector(norm.bias)]
        return self.graph.node(
            operator, inputs, label_of(norm), axis=-1, epsilon=self.model.epsilon
        )


def label_of(norm: Norm) -> str:
    """`blk.3.attn_norm.weight` → `attn_norm`."""
    return norm.weight.removesuffix(".weight").rpartition(".")[2]
