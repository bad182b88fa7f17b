"""Feed-forward networks in a graph: dense ones and mixtures of experts.

Experts with codes go through QMoE, whose only fused form on CPU interleaves the rows of gate and up;
experts in floats through MoE, which routes the same way. Routing without given weights is a softmax
over the chosen experts (QMoE, and MoE when told to normalise).
"""

from __future__ import annotations

from converters.architectures.experts import Experts
from converters.architectures.parts import FeedForward
from converters.targets.onnx.experts import StackForm, stack_names
from converters.targets.onnx.graph import MICROSOFT, GraphBuilder
from converters.targets.onnx.linear import INTEGER_ACTIVATIONS
from converters.targets.onnx.parts import Parts


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
    inner = graph.node("Mul", [_activated(graph, gate, shape, label), up], f"{label}_inner")
    return parts.linear(inner, shape.down)


def _activated(graph: GraphBuilder, x: str, shape: FeedForward, label: str) -> str:
    match shape.activation:
        case "silu":  # x · sigmoid(x) in one pass
            return graph.node("QuickGelu", [x], f"{label}_silu", domain=MICROSOFT, alpha=1.0)
        case "gelu":
            return graph.node("Gelu", [x], f"{label}_gelu", approximate="none")
        case "gelu_tanh":
            return graph.node("Gelu", [x], f"{label}_gelu", approximate="tanh")


# ---- experts ----


def _mixture(parts: Parts, x: str, index: int, shape: Experts) -> str:
    graph = parts.graph
    routed = _routed(parts, x, index, shape)
    if shape.scale != 1.0:
        routed = graph.node("Mul", [routed, graph.number(shape.scale)], "experts_scaled")
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
    ids = graph.node("Reshape", [x, graph.integers(-1, parts.model.embedding_length)], "experts_in")
    first, second = (parts.layout.stacks[name] for name in stack_names(index))
    weights = [
        {role: graph.weight(piece) for role, piece in stack.pieces.items()}
        for stack in (first, second)
    ]
    if first.form.kind == "floats":
        found = _float_experts(parts, [ids, scores], weights, shape)
    else:
        chosen, shares = _routing(parts, scores, shape)
        found = _coded_experts(parts, [ids, chosen, shares], weights, shape, first.form)
    shape_of_x = graph.node("Shape", [x], "experts_shape")
    return graph.node("Reshape", [found, shape_of_x], "experts", allowzero=1)


def _routing(parts: Parts, scores: str, shape: Experts) -> tuple[str, str]:
    """(what experts are chosen by, their weights or "" for a softmax over the chosen ones)."""
    graph = parts.graph
    if shape.gating == "softmax" and shape.is_normalised and not shape.selection_bias:
        return scores, ""
    operator = "Softmax" if shape.gating == "softmax" else "Sigmoid"
    shares = graph.node(operator, [scores], "router_shares")
    if not shape.selection_bias:
        return scores, shares
    bias = parts.vector(shape.selection_bias)
    return graph.node("Add", [shares, bias], "router_choice"), shares


def _activation(shape: Experts) -> dict[str, int | float | str]:
    if shape.activation == "gelu":
        return {"k": shape.used, "activation_type": "gelu"}
    options: dict[str, int | float | str] = {
        "k": shape.used,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": shape.alpha,
        "activation_beta": shape.beta,
    }
    return options | ({"swiglu_limit": shape.limit} if shape.limit else {})


def _float_experts(
    parts: Parts, inputs: list[str], weights: list[dict[str, str]], shape: Experts
) -> str:
    for stack in weights:
        inputs = [*inputs, stack["values"], stack.get("bias", "")]
    return parts.graph.node(
        "MoE",
        inputs,
        "experts_sum",
        domain=MICROSOFT,
        normalize_routing_weights=int(shape.is_normalised),
        **_activation(shape),
    )


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
