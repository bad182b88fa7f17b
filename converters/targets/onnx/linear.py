"""Products of activations with matrices, in every form that a layout knows.

A symmetric MatMulNBits carries scale · (code - 2^(bits-1)); what a GGML minimum adds to that is one
number per block, and its product with the input is (sums of the input's blocks) · correction. Never
a zero point for the minimum: as a float it is not prepacked, rounded it doubles the error.
"""

from __future__ import annotations

from converters.artifact import ADAPTER_WEIGHTS_FILE
from converters.targets.onnx.graph import MICROSOFT, GraphBuilder
from converters.targets.onnx.layout import Layout, Matrix
from converters.targets.onnx.pieces import NUMBER_BITS, LowRank

# 4 lets the kernel round activations to 8 bits, as llama.cpp does for quantised weights; 0 does not.
INTEGER_ACTIVATIONS = 4
FLOAT_ACTIVATIONS = 0


def linear(graph: GraphBuilder, layout: Layout, x: str, name: str) -> str:
    """From x [1|B, S, columns] to [1|B, S, rows], bias and adapter included."""
    y = _base(graph, layout, x, name)
    low_rank = layout.low_rank.get(name)
    return _sum(graph, y, _low_rank(graph, x, low_rank, name), f"{name}.adapted") if low_rank else y


def _base(graph: GraphBuilder, layout: Layout, x: str, name: str) -> str:
    matrix = layout.matrices[name]
    bias = graph.weight(layout.vectors[matrix.bias].piece) if matrix.bias else ""
    if matrix.form.kind in NUMBER_BITS:
        values = graph.weight(matrix.pieces["values"])
        if matrix.form.kind != layout.number:
            values = graph.widened(values)
        y = graph.nodes(
            "FusedMatMul", [x, values], [f"{name}.product"], domain=MICROSOFT, transB=1
        )[0]
        return _sum(graph, y, bias, f"{name}.biased")
    if matrix.form.kind == "codes":
        y = _codes(graph, x, matrix, bias, layout)
    else:
        y = _sum(graph, _split(graph, x, matrix), bias, f"{name}.biased")
    return _corrected(graph, x, y, matrix)


def _low_rank(graph: GraphBuilder, x: str, low_rank: LowRank, name: str) -> str:
    for label, piece in (("low", low_rank.down), ("high", low_rank.up)):
        values = graph.weight(piece, ADAPTER_WEIGHTS_FILE)
        output = [f"{name}.adapter_{label}"]
        x = graph.nodes("FusedMatMul", [x, values], output, domain=MICROSOFT, transB=1)[0]
    return x


def _codes(graph: GraphBuilder, x: str, matrix: Matrix, bias: str, layout: Layout) -> str:
    """NOTE: on CUDA a bias within the node keeps it from the fastest kernel, so it is added."""
    is_precise, has_half = layout.is_precise, layout.number == "float16"
    level = FLOAT_ACTIVATIONS if is_precise or has_half else INTEGER_ACTIVATIONS
    inputs = [graph.weight(matrix.pieces["codes"]), graph.weight(matrix.pieces["scales"])]
    within = "" if has_half else bias
    product = [x, *inputs, "", "", within]
    y = _product(graph, product, "product", matrix, matrix.form.bits, level)
    return _sum(graph, y, bias, f"{matrix.name}.biased") if has_half else y


def _split(graph: GraphBuilder, x: str, matrix: Matrix) -> str:
    """The sum scale · (code - 128) = 16 scale · (high - 8) + scale · low, both of 4 bits."""
    pieces = {role: graph.weight(piece) for role, piece in matrix.pieces.items()}
    high = [x, pieces["high"], pieces["high_scales"]]
    low = [x, pieces["low"], pieces["scales"], pieces["zeros"]]
    return _sum(
        graph,
        _product(graph, high, "high_product", matrix, 4, FLOAT_ACTIVATIONS),
        _product(graph, low, "low_product", matrix, 4, FLOAT_ACTIVATIONS),
        f"{matrix.name}.product",
    )


def _product(
    graph: GraphBuilder, inputs: list[str], label: str, matrix: Matrix, bits: int, level: int
) -> str:
    return graph.nodes(
        "MatMulNBits",
        inputs,
        [f"{matrix.name}.{label}"],
        domain=MICROSOFT,
        K=matrix.columns,
        N=matrix.rows,
        bits=bits,
        block_size=matrix.form.block,
        accuracy_level=level,
    )[0]


def _corrected(graph: GraphBuilder, x: str, y: str, matrix: Matrix) -> str:
    if not matrix.form.is_corrected:
        return y
    sums = graph.block_sums(x, matrix.columns // matrix.form.block, matrix.form.block)
    piece = graph.weight(matrix.pieces["correction"])
    offset = graph.nodes("MatMul", [sums, piece], [f"{matrix.name}.offset"])[0]
    return _sum(graph, y, offset, f"{matrix.name}.corrected")


def _sum(graph: GraphBuilder, y: str, addend: str, name: str) -> str:
    return graph.nodes("Add", [y, addend], [name])[0] if addend else y
