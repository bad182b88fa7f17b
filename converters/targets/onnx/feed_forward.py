"""Feed-forward networks in a graph: dense ones and mixtures of experts.

Experts with codes go through QMoE, whose only fused form on CPU interleaves the rows of gate and up;
experts in floats through MoE, which routes the same way. Routing without given weights is a softmax
over the chosen experts (QMoE, and MoE when told to normalise). MoE takes no given weights: it gets the
logarithms of the chosen experts' instead, and so low numbers for the others that their share is 0.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import numpy_helper

from converters.architectures.experts import Experts
from converters.architectures.parts import FeedForward, Xielu
from converters.targets.onnx.experts import StackForm, stack_names
from converters.targets.onnx.graph import MICROSOFT, GraphBuilder
from converters.targets.onnx.linear import INTEGER_ACTIVATIONS
from converters.targets.onnx.parts import Parts

# Below every number that experts are chosen by, and e to its power is 0; fits into fp16.
NEVER = -1e4
# So steep that x · sigmoid(STEP · x) · x is relu(x)², off by less than 1e-12.
STEP = 1e6


def feed_forward(parts: Parts, x: str, index: int, shape: FeedForward | Experts) -> str:
    """From x [1|B, S, E] to [1|B, S, E]."""
    if isinstance(shape, Experts):
        return _mixture(parts, x, index, shape)
    return _dense(parts, x, shape, "ffn")


def _dense(parts: Parts, x: str, shape: FeedForward, label: str) -> str:
    graph = parts.graph
    up = parts.linear(x, shape.up)
    if not (shape.gate or shape.is_up_fused):
        return parts.linear(_activated(graph, up, shape, label), shape.down)
    if shape.gate is None:
        halves = [graph.scoped(f"{label}_gate_half"), graph.scoped(f"{label}_up_half")]
        gate, up = graph.nodes("Split", [up], halves, axis=-1, num_outputs=2)
    else:
        gate = parts.linear(x, shape.gate)
    if shape.cutoff is not None:
        gate = _excess(graph, gate, shape.cutoff, shape.down.columns)
    inner = graph.node("Mul", [_activated(graph, gate, shape, label), up], f"{label}_inner")
    return parts.linear(inner, shape.down)


def _excess(graph: GraphBuilder, x: str, cutoff: float, width: int) -> str:
    """What of x [.., width] exceeds mean + cutoff · deviation."""
    axis = graph.integers(2)
    mean = graph.node("ReduceMean", [x, axis], "gate_mean", keepdims=1)
    centred = graph.node("Sub", [x, mean], "gate_centred")
    squares = graph.node("ReduceSumSquare", [centred, axis], "gate_squares", keepdims=1)
    variance = graph.node("Mul", [squares, graph.number(1.0 / (width - 1))], "gate_variance")
    deviation = graph.node("Sqrt", [variance], "gate_deviation")
    limit = graph.node("Mul", [deviation, graph.number(cutoff)], "gate_limit")
    return graph.node("Relu", [graph.node("Sub", [centred, limit], "gate_over")], "gate_excess")


def _activated(graph: GraphBuilder, x: str, shape: FeedForward, label: str) -> str:
    match shape.activation:
        case "silu":  # x · sigmoid(x) in one pass
            return graph.node("QuickGelu", [x], f"{label}_silu", domain=MICROSOFT, alpha=1.0)
        case "gelu":
            return graph.node("Gelu", [x], f"{label}_gelu", approximate="none")
        case "gelu_tanh":
            return graph.node("Gelu", [x], f"{label}_gelu", approximate="tanh")
        case "relu_squared":
            positive = graph.node("Relu", [x], f"{label}_relu")
            return graph.node("Mul", [positive, positive], f"{label}_relu_squared")
        case "xielu":
            assert shape.xielu is not None
            return _xielu(graph, x, shape.xielu, label)


def _xielu(graph: GraphBuilder, x: str, xielu: Xielu, label: str) -> str:
    def made(operator: str, one: str, other: str | float, name: str) -> str:
        second = other if isinstance(other, str) else graph.number(other)
        return graph.node(operator, [one, second], f"{label}_{name}")

    above = made("Mul", made("Mul", x, x, "square"), softplus(xielu.positive), "above")
    grown = graph.node("Exp", [made("Min", x, xielu.eps, "low")], f"{label}_exp")
    low = made("Sub", made("Sub", grown, 1.0, "expm1"), x, "expm1_less_x")
    below = made("Mul", low, xielu.beta + softplus(xielu.negative), "below")
    is_above = made("Greater", x, 0.0, "is_above")
    bent = graph.node("Where", [is_above, above, below], f"{label}_bent")
    return made("Add", bent, made("Mul", x, xielu.beta, "straight"), "xielu")


def softplus(x: float) -> float:
    """ln(1 + e^x), without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


# ---- experts ----


def _mixture(parts: Parts, x: str, index: int, shape: Experts) -> str:
    graph = parts.graph
    routed = _routed(parts, x, index, shape)
    if shape.scale != 1.0:
        routed = graph.node("Mul", [routed, graph.number(shape.scale)], "experts_scaled")
    if shape.latent_up:
        routed = parts.linear(routed, shape.latent_up)
    if shape.shared is None:
        return routed
    shared = _dense(parts, x, shape.shared, "shared")
    if shape.shared_gate:
        opened = graph.node("Sigmoid", [parts.linear(x, shape.shared_gate)], "shared_gate_open")
        shared = graph.node("Mul", [shared, opened], "shared_gated")
    return graph.node("Add", [routed, shared], "experts_and_shared")


def _routed(parts: Parts, x: str, index: int, shape: Experts) -> str:
    """The experts' sum. Router numbers and the operator itself want [ids, ·]."""
    graph = parts.graph
    flat = graph.integers(-1, shape.count)
    scores = graph.node("Reshape", [parts.linear(x, shape.router), flat], "router_scores")
    read = parts.linear(x, shape.latent_down) if shape.latent_down else x
    ids = graph.node("Reshape", [read, graph.integers(-1, shape.up.columns)], "experts_in")
    first, second = (parts.layout.stacks[name] for name in stack_names(index))
    weights = [
        {role: graph.weight(piece) for role, piece in stack.pieces.items()}
        for stack in (first, second)
    ]
    if first.form.kind == "floats":
        found = _float_experts(parts, ids, scores, weights, shape)
    else:
        chosen, shares = _routing(parts, scores, shape)
        found = _coded_experts(parts, [ids, chosen, shares], weights, shape, first.form)
    whole = graph.node("Shape", [read], "experts_shape")
    return graph.node("Reshape", [found, whole], "experts", allowzero=1)


def _routing(parts: Parts, scores: str, shape: Experts) -> tuple[str, str]:
    """(what experts are chosen by, their weights or "" for a softmax over the chosen ones)."""
    graph = parts.graph
    if shape.is_softmax_of_chosen:
        return scores, ""
    operator = "Softmax" if shape.gating == "softmax" else "Sigmoid"
    shares = graph.node(operator, [scores], "router_shares")
    if not shape.selection_bias and shape.groups == 1:
        return scores, shares
    choice = shares
    if shape.selection_bias:
        bias = parts.vector(shape.selection_bias)
        choice = graph.node("Add", [shares, bias], "router_choice")
    return (_of_best_groups(graph, choice, shape) if shape.groups > 1 else choice), shares


def _of_best_groups(graph: GraphBuilder, choice: str, shape: Experts) -> str:
    """[ids, experts], so low outside of the best groups that nothing there is chosen.

    NOTE: no axis is negative, since ReduceSum then keeps it when there are no ids.
    """
    cut = graph.integers(-1, shape.groups, shape.count // shape.groups)
    grouped = graph.node("Reshape", [choice, cut], "router_groups")
    best, _ = _top(graph, grouped, 2, "group_best")
    sums = graph.node("ReduceSum", [best, graph.integers(2)], "group_sums", keepdims=0)
    top, chosen = _top(graph, sums, shape.groups_used, "group_top")
    zeros = graph.node("Mul", [top, graph.number(0.0)], "group_zeros")
    mask = _scattered(graph, sums, chosen, zeros, "group_mask")
    column = graph.node("Unsqueeze", [mask, graph.integers(2)], "group_masks")
    masked = graph.node("Add", [grouped, column], "router_masked")
    return graph.node("Reshape", [masked, graph.integers(-1, shape.count)], "router_of_groups")


def _top(graph: GraphBuilder, x: str, count: int, label: str) -> tuple[str, str]:
    """The largest `count` along the last axis, and where they were."""
    outputs = [graph.scoped(label), graph.scoped(f"{label}_places")]
    values, places = graph.nodes("TopK", [x, graph.integers(count)], outputs, axis=-1)
    return values, places


def _scattered(graph: GraphBuilder, like: str, places: str, values: str, label: str) -> str:
    """[ids, ·] as `like`, with the values at their places in each row and NEVER elsewhere."""
    size = graph.node("Shape", [like], f"{label}.size")
    fill = numpy_helper.from_array(np.array([NEVER], graph.item))
    empty = graph.node("ConstantOfShape", [size], f"{label}.never", value=fill)
    return graph.node("ScatterElements", [empty, places, values], label, axis=1)


def _activation(shape: Experts) -> dict[str, int | float | str]:
    if shape.activation == "gelu":
        return {"k": shape.used, "activation_type": "gelu"}
    is_squared = shape.activation == "relu_squared"
    options: dict[str, int | float | str] = {
        "k": shape.used,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": STEP if is_squared else shape.alpha,
        "activation_beta": shape.beta,
    }
    return options | ({"swiglu_limit": shape.limit} if shape.limit else {})


def _float_experts(
    parts: Parts, ids: str, scores: str, weights: list[dict[str, str]], shape: Experts
) -> str:
    """NOTE: the operator's own weights are shares of the softmax over all experts unless told otherwise."""
    is_given = shape.gating != "softmax" or bool(shape.selection_bias) or shape.groups > 1
    total = ""
    if is_given:
        scores, total = _given_weights(parts, scores, shape)
    inputs = [ids, scores]
    for stack in weights:
        inputs = [*inputs, stack["values"], stack.get("bias", "")]
    found = parts.graph.node(
        "MoE",
        inputs,
        "experts_sum",
        domain=MICROSOFT,
        normalize_routing_weights=int(is_given or shape.is_normalised),
        **_activation(shape),
    )
    return parts.graph.node("Mul", [found, total], "experts_weighted") if total else found


def _given_weights(parts: Parts, scores: str, shape: Experts) -> tuple[str, str]:
    """(logarithms of the chosen experts' weights, what their normalised sum is to be multiplied by)."""
    graph = parts.graph
    choice, _ = _routing(parts, scores, shape)
    _, chosen = _top(graph, choice, shape.used, "experts_chosen")
    if shape.gating == "softmax":
        logarithms = graph.node("LogSoftmax", [scores], "router_logarithms", axis=-1)
    else:  # of a sigmoid, without its underflow
        negative = graph.node("Neg", [scores], "router_negative")
        grown = graph.node("Softplus", [negative], "router_softplus")
        logarithms = graph.node("Neg", [grown], "router_logarithms")
    wanted = graph.node("GatherElements", [logarithms, chosen], "weight_logarithms", axis=1)
    routed = _scattered(graph, scores, chosen, wanted, "router_of_chosen")
    if shape.is_normalised:
        return routed, ""
    weights = graph.node("Exp", [wanted], "expert_weights")
    return routed, graph.node("ReduceSum", [weights, graph.integers(1)], "weight_sum", keepdims=1)


def _coded_experts(
    parts: Parts,
    inputs: list[str],
    weights: list[dict[str, str]],
    shape: Experts,
    form: StackForm,
) -> str:
    ids, chosen, shares = inputs
    first, second = weights
    stacks = [first["codes"], first["scales"], first.get("bias", "")]
    stacks += [second["codes"], second["scales"], second.get("bias", "")]
    zeros = [first.get("zeros", ""), second.get("zeros", "")]
    return parts.graph.node(
        "QMoE",
        [ids, chosen, *stacks, "", "", "", *zeros, "", shares],
        "experts_sum",
        domain=MICROSOFT,
        expert_weight_bits=form.bits,
        block_size=form.block,
        accuracy_level=INTEGER_ACTIVATIONS,
        weights_prepacked=0,
        normalize_routing_weights=int(bool(shares) and shape.is_normalised),
        **_activation(shape),
    )
