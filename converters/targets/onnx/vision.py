"""The graph of a vision tower: patches in, vectors out, as `converters.vision_artifact` says.

With a layout in float16 everything between the inputs and the outputs is that; those stay fp32.
"""

from __future__ import annotations

import onnx

from converters.architectures.parts import Linear, Norm
from converters.projectors.tower import (
    Activation,
    Bend,
    Group,
    Perceptron,
    Pool,
    Shuffle,
    Step,
    StepNorm,
    Turned,
    VisionBlock,
    VisionShape,
)
from converters.targets.onnx.graph import MICROSOFT, GraphBuilder
from converters.targets.onnx.layout import Layout
from converters.targets.onnx.linear import linear
from converters.targets.onnx.parts import label_of
from converters.targets.onnx.vision_attention import Sight, attend

_QUICK_ALPHA = 1.702
# Rows of the table of places that are mixed for one patch.
_MIXED_PLACES = 4


def tower_model(tower: VisionShape, layout: Layout) -> onnx.ModelProto:
    return _TowerGraph(tower, layout).build()


class _TowerGraph:
    """One build. The methods follow the data from the patches to the vectors."""

    def __init__(self, tower: VisionShape, layout: Layout) -> None:
        self._tower = tower
        self._layout = layout
        self._graph = GraphBuilder(layout.number)

    def build(self) -> onnx.ModelProto:
        graph, tower = self._graph, self._tower
        patches: str | int = tower.tile_patches or "P"
        graph.input("patches", "float32", ["N", patches, tower.patches[0].columns])
        x = self._placed(self._embedded(), patches)
        sight = Sight(graph, tower, patches)
        taps = {tap.block: tap for tap in tower.taps}
        if tower.first_norm:
            x = self._norm(x, tower.first_norm, tower.epsilon)
        found: list[str] = []
        for index, block in enumerate(tower.blocks):
            graph.scope = f"v.blk.{index}"
            x = self._block(x, block, sight)
            if index in taps:
                graph.scope = f"tap.{index}"
                found.append(self._projected(x, taps[index].steps))
        graph.scope = ""
        self._finish([self._projected(self._ended(x), tower.steps), *found])
        return graph.model(tower.form.projector)

    # ---- before the blocks ----

    def _embedded(self) -> str:
        """[N, P, E] of the patches."""
        graph = self._graph
        given = graph.as_activations("patches", "patches_narrow")
        products = [self._linear(given, kernel) for kernel in self._tower.patches]
        x = products[0]
        for place, product in enumerate(products[1:]):
            x = graph.node("Add", [x, product], f"frames.{place}")
        return x

    def _placed(self, x: str, patches: str | int) -> str:
        """With the class token in front and the places added."""
        graph, tower = self._graph, self._tower
        if tower.class_token:
            tiles = graph.node("Shape", ["patches"], "tiles", start=0, end=1)
            sides = [tiles, graph.integers(1, tower.embedding_length)]
            shape = graph.node("Concat", sides, "token_shape", axis=0)
            token = graph.node("Expand", [self._vector(tower.class_token), shape], "token")
            x = graph.node("Concat", [token, x], "with_token", axis=1)
        if tower.places is None:
            return x
        table = self._vector(tower.places.table)
        if tower.places.is_interpolated:
            table = self._mixed(table, patches)
        return graph.node("Add", [x, table], "placed")

    def _mixed(self, table: str, patches: str | int) -> str:
        """[P, E]: a weighted sum of rows, one after the other, so that memory is that of two."""
        graph = self._graph
        graph.input("place_ids", "int64", [patches, _MIXED_PLACES])
        graph.input("place_weights", "float32", [patches, _MIXED_PLACES])
        weights = graph.as_activations("place_weights", "place_weights_narrow")
        total = ""
        for place in range(_MIXED_PLACES):
            column = graph.scalar(place)
            ids = graph.node("Gather", ["place_ids", column], f"place_ids.{place}", axis=1)
            rows = graph.node("Gather", [table, ids], f"place_rows.{place}", axis=0)
            share = graph.integers(place)
            shares = graph.node("Gather", [weights, share], f"place_shares.{place}", axis=1)
            part = graph.node("Mul", [rows, shares], f"place_part.{place}")
            total = graph.node("Add", [total, part], f"places.{place}") if total else part
        return total

    # ---- blocks ----

    def _block(self, x: str, block: VisionBlock, sight: Sight) -> str:
        epsilon = self._tower.epsilon
        normed = self._norm(x, block.attention_norm, epsilon)
        branch = attend(self._linear, self._norm_of_head, sight, normed, block.attention)
        x = self._added(x, branch, block.attention_scale, "attended")
        normed = self._norm(x, block.feed_forward_norm, epsilon)
        branch = self._perceptron(normed, block.feed_forward)
        return self._added(x, branch, block.feed_forward_scale, "fed_forward")

    def _added(self, x: str, branch: str, scale: str, label: str) -> str:
        if scale:
            branch = self._graph.node("Mul", [branch, self._vector(scale)], f"{label}_scaled")
        return self._graph.node("Add", [x, branch], label)

    def _perceptron(self, x: str, network: Perceptron) -> str:
        first = self._linear(x, network.gate or network.up)
        bent = self._bent(first, network.activation, "bent")
        if network.gate:
            bent = self._graph.node("Mul", [bent, self._linear(x, network.up)], "gated")
        return self._linear(bent, network.down)

    def _ended(self, x: str) -> str:
        """After the blocks, the class token left out."""
        graph, tower = self._graph, self._tower
        if tower.last_norm:
            x = self._norm(x, tower.last_norm, tower.epsilon)
        if tower.class_token:
            end = graph.integers(tower.tile_patches + 1)
            bounds = [graph.integers(1), end, graph.integers(1)]
            x = graph.node("Slice", [x, *bounds], "without_token")
        return x

    # ---- projector ----

    def _projected(self, x: str, steps: tuple[Step, ...]) -> str:
        for place, step in enumerate(steps):
            x = self._step(x, step, f"step.{place}")
        return x

    def _step(self, x: str, step: Step, label: str) -> str:
        graph = self._graph
        match step:
            case Pool():
                cut = self._cut(x, step.grid, step.side, label)
                mean = graph.node("ReduceMean", [cut, graph.integers(2, 4)], label, keepdims=0)
                return self._rows(mean, (step.grid // step.side) ** 2, f"{label}.rows")
            case Shuffle():
                cut = self._cut(x, step.grid, step.side, label)
                order = [0, 1, 3, 2, 4, 5]
                joined = graph.node("Transpose", [cut], f"{label}.turned", perm=order)
                return self._rows(joined, (step.grid // step.side) ** 2, label)
            case Group():
                return self._grouped(x, step, label)
            case Bend():
                return self._bent(x, step.activation, label)
            case StepNorm():
                return self._norm(x, step.norm, step.epsilon, label)
            case Turned():
                return graph.node("MatMul", [x, self._vector(step.weight)], label)
            case Linear():
                return self._linear(x, step)

    def _grouped(self, x: str, step: Group, label: str) -> str:
        graph, width = self._graph, self._tower.embedding_length
        if step.is_interleaved:
            cut = graph.node(
                "Reshape", [x, graph.integers(0, -1, step.count, width)], f"{label}.cut"
            )
            x = graph.node("Transpose", [cut], f"{label}.turned", perm=[0, 1, 3, 2])
        return graph.node("Reshape", [x, graph.integers(0, -1, step.count * width)], label)

    def _cut(self, x: str, grid: int, side: int, label: str) -> str:
        """[N, grid², E] → [N, grid / side, side, grid / side, side, E]."""
        sides = (grid // side, side, grid // side, side)
        shape = self._graph.integers(0, *sides, self._tower.embedding_length)
        return self._graph.node("Reshape", [x, shape], f"{label}.cut")

    def _rows(self, x: str, rows: int, label: str) -> str:
        return self._graph.node("Reshape", [x, self._graph.integers(0, rows, -1)], label)

    def _finish(self, found: list[str]) -> None:
        graph, tower = self._graph, self._tower
        x = graph.node("Concat", found, "side_by_side", axis=-1) if len(found) > 1 else found[0]
        width = tower.width * len(found)
        output = graph.output("embeddings", "float32", ["N", "L", width])
        graph.nodes("Identity", [graph.as_float32(x, "embeddings_wide")], [output])
        if tower.row_break:
            output = graph.output("row_break", "float32", [tower.width])
            line = graph.as_float32(self._vector(tower.row_break), "row_break_wide")
            graph.nodes("Identity", [line], [output])

    # ---- parts ----

    def _linear(self, x: str, matrix: Linear) -> str:
        return linear(self._graph, self._layout, x, matrix.stem)

    def _vector(self, name: str) -> str:
        return self._graph.weight(self._layout.vectors[name].piece) if name else ""

    def _norm_of_head(self, x: str, norm: Norm) -> str:
        return self._norm(x, norm, self._tower.epsilon)

    def _norm(self, x: str, norm: Norm, epsilon: float, label: str = "") -> str:
        operator = "LayerNormalization" if norm.is_centered else "RMSNormalization"
        inputs = [x, self._vector(norm.weight), self._vector(norm.bias)]
        label = label or label_of(norm)
        return self._graph.node(operator, inputs, label, axis=-1, epsilon=epsilon)

    def _bent(self, x: str, activation: Activation, label: str) -> str:
        graph = self._graph
        if activation in ("gelu", "gelu_tanh"):
            approximate = "tanh" if activation == "gelu_tanh" else "none"
            return graph.node("Gelu", [x], label, approximate=approximate)
        alpha = 1.0 if activation == "silu" else _QUICK_ALPHA
        return graph.node("QuickGelu", [x], label, domain=MICROSOFT, alpha=alpha)
