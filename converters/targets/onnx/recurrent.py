"""Mixers that carry a state from run to run instead of keys and values.

The states are inputs `past_*` and outputs `present_*` of the graph, one row's after the other:
`converters.artifact.RowState`. Every run goes on where the row's last one ended. States, and all
that is between the products before and behind them, are fp32 in every graph: errors would add up
over a row, and the CPU has these kernels in fp32 only.
"""

from __future__ import annotations

from converters.architectures.mixers import (
    GatedDeltaNet,
    Recurrent,
    Shape,
    ShortConvolution,
    states_of,
)
from converters.architectures.model import ModelShape
from converters.architectures.parts import Linear
from converters.artifact import RowState
from converters.targets.onnx.graph import MICROSOFT
from converters.targets.onnx.parts import Parts


def row_states(model: ModelShape) -> tuple[RowState, ...]:
    """What the graph carries from run to run besides keys and values."""
    return tuple(
        RowState(past=f"past_{name}.{index}", present=f"present_{name}.{index}", shape=shape)
        for index, block in enumerate(model.blocks)
        if isinstance(block.mixer, Recurrent)
        for name, shape in states_of(block.mixer).items()
    )


def state(parts: Parts, index: int, name: str, shape: Shape) -> tuple[str, str]:
    """Names of the graph's input and output for a block's state."""
    whole: list[str | int] = ["B", *shape]
    past = parts.graph.input(f"past_{name}.{index}", "float32", whole)
    return past, parts.graph.output(f"present_{name}.{index}", "float32", whole)


def convolved(
    parts: Parts, x: str, index: int, mixer: Recurrent, *, bias: str = "", **options: str
) -> str:
    """Depthwise and causal, over [B, S, channels]."""
    past, present = state(parts, index, "conv", states_of(mixer)["conv"])
    return parts.graph.nodes(
        "CausalConvWithState",
        [x, parts.vector(mixer.kernel), bias, past],
        [parts.graph.scoped("convolved"), present],
        domain=MICROSOFT,
        channels_last=1,
        **options,
    )[0]


def wide(parts: Parts, x: str, matrix: Linear) -> str:
    """A product in fp32."""
    return parts.graph.as_float32(parts.linear(x, matrix), f"{matrix.stem.rpartition('.')[2]}_wide")


def short_convolution(parts: Parts, x: str, index: int, mixer: ShortConvolution) -> str:
    """C · convolution(b · x), before the output projection."""
    graph = parts.graph
    names = [graph.scoped(f"conv_{part}") for part in "bcx"]
    whole = wide(parts, x, mixer.input)
    b, c, inner = graph.nodes("Split", [whole], names, axis=-1, num_outputs=3)
    product = graph.node("Mul", [b, inner], "conv_in")
    found = graph.node("Mul", [c, convolved(parts, product, index, mixer)], "conv_out")
    return graph.as_activations(found, "conv_out_half")


def gated_delta_net(parts: Parts, x: str, index: int, mixer: GatedDeltaNet) -> str:
    """[B, S, value_heads · size], before the output projection."""
    graph = parts.graph
    mixed, gate = _inputs(parts, x, mixer)
    query, key, value = _convolved_heads(parts, mixed, index, mixer)
    alpha, beta = _rates(parts, x, mixer)
    past, present = state(parts, index, "delta", states_of(mixer)["delta"])
    beta = graph.node("Sigmoid", [beta], "delta_beta")
    attended = graph.nodes(
        "LinearAttention",
        [query, key, value, past, _decay(parts, alpha, mixer), beta],
        [graph.scoped("delta"), present],
        domain=MICROSOFT,
        q_num_heads=mixer.value_heads,
        kv_num_heads=mixer.value_heads,
        update_rule="gated_delta",
        scale=mixer.size**-0.5,
    )[0]
    return _gated_norm(parts, attended, gate, mixer)


def _inputs(parts: Parts, x: str, mixer: GatedDeltaNet) -> tuple[str, str]:
    """[q; k; v] before it is convolved, and the gate."""
    if mixer.mixed and mixer.gate:
        return wide(parts, x, mixer.mixed), wide(parts, x, mixer.gate)
    assert mixer.fused is not None
    graph, values = parts.graph, mixer.rounds * mixer.size
    sizes = (mixer.size, mixer.size, values, values)
    *qkv, gate = _cut_by_key_head(parts, wide(parts, x, mixer.fused), mixer, sizes, "delta_in")
    return graph.node("Concat", qkv, "delta_in.qkv", axis=-1), gate


def _rates(parts: Parts, x: str, mixer: GatedDeltaNet) -> tuple[str, str]:
    """(alpha, beta), [B, S, value_heads] each."""
    if mixer.alpha and mixer.beta:
        return wide(parts, x, mixer.alpha), wide(parts, x, mixer.beta)
    assert mixer.beta_alpha is not None
    sizes, both = (mixer.rounds, mixer.rounds), wide(parts, x, mixer.beta_alpha)
    beta, alpha = _cut_by_key_head(parts, both, mixer, sizes, "delta_rates")
    return alpha, beta


def _cut_by_key_head(
    parts: Parts, x: str, mixer: GatedDeltaNet, sizes: tuple[int, ...], label: str
) -> list[str]:
    """Parts of `sizes` numbers that follow each other for each key head, each with all its heads."""
    graph = parts.graph
    cut = graph.integers(0, 0, mixer.key_heads, sum(sizes))
    heads = graph.node("Reshape", [x, cut], f"{label}.heads")
    names = [graph.scoped(f"{label}.{place}") for place in range(len(sizes))]
    found = graph.nodes("Split", [heads, graph.integers(*sizes)], names, axis=-1)
    whole = [graph.integers(0, 0, mixer.key_heads * size) for size in sizes]
    return [
        graph.node("Reshape", [part, shape], f"{label}.{place}.all")
        for place, (part, shape) in enumerate(zip(found, whole, strict=True))
    ]


def _convolved_heads(
    parts: Parts, mixed: str, index: int, mixer: GatedDeltaNet
) -> tuple[str, str, str]:
    """q, k and v, each [B, S, value_heads · size], q and k of length 1 in each head."""
    graph, keys = parts.graph, mixer.key_heads * mixer.size
    mixed = convolved(parts, mixed, index, mixer, activation="silu")
    lengths = graph.integers(keys, keys, mixer.value_heads * mixer.size)
    names = [graph.scoped(f"delta_{part}") for part in "qkv"]
    query, key, value = graph.nodes("Split", [mixed, lengths], names, axis=-1)
    return _unit(parts, query, "q", mixer), _unit(parts, key, "k", mixer), value


def _unit(parts: Parts, x: str, label: str, mixer: GatedDeltaNet) -> str:
    """Each head divided by its length, then the heads repeated for the value heads, in turn or each."""
    graph, label = parts.graph, f"delta_{label}"
    cut = graph.integers(0, 0, mixer.key_heads, mixer.size)
    heads = graph.node("Reshape", [x, cut], f"{label}.heads")
    length = _length(parts, heads, label)
    floor = graph.number(parts.model.epsilon, "float32")  # as ggml's L2 norm does
    divisor = graph.node("Max", [length, floor], f"{label}.divisor")
    unit = graph.node("Div", [heads, divisor], f"{label}.unit")
    if mixer.is_grouped and mixer.rounds > 1:
        unit = graph.node("Concat", [unit] * mixer.rounds, f"{label}.each", axis=-1)
        return graph.node(
            "Reshape", [unit, graph.integers(0, 0, mixer.value_heads * mixer.size)], f"{label}.all"
        )
    joined = graph.integers(0, 0, mixer.key_heads * mixer.size)
    whole = graph.node("Reshape", [unit, joined], f"{label}.whole")
    if mixer.rounds == 1:
        return whole
    return graph.node("Concat", [whole] * mixer.rounds, f"{label}.repeated", axis=-1)


def _length(parts: Parts, heads: str, label: str) -> str:
    """Of each head. On a GPU in parts: the operator would need cuDNN, and nothing else here does."""
    graph = parts.graph
    if graph.item == "float32":
        return graph.node("ReduceL2", [heads, graph.integers(3)], f"{label}.length")
    squares = graph.node("Mul", [heads, heads], f"{label}.squares")
    summed = graph.node("ReduceSum", [squares, graph.integers(3)], f"{label}.summed")
    return graph.node("Sqrt", [summed], f"{label}.length")


def _decay(parts: Parts, alpha: str, mixer: GatedDeltaNet) -> str:
    """[B, S, value_heads]: the logarithm of what is kept of the state."""
    graph = parts.graph
    biased = graph.node("Add", [alpha, parts.vector(mixer.time_bias)], "delta_alpha")
    step = graph.node("Softplus", [biased], "delta_step")
    return graph.node("Mul", [step, parts.vector(mixer.decay)], "delta_decay")


def _gated_norm(parts: Parts, attended: str, gate: str, mixer: GatedDeltaNet) -> str:
    """norm(head) · silu(gate), head by head."""
    graph = parts.graph
    cut = graph.integers(0, 0, mixer.value_heads, mixer.size)
    heads = graph.node("Reshape", [attended, cut], "delta_heads")
    joined = graph.integers(0, 0, mixer.value_heads * mixer.size)
    normed = graph.node("Reshape", [parts.norm(heads, mixer.norm), joined], "delta_normed")
    opened = graph.node("QuickGelu", [gate], "delta_gate", domain=MICROSOFT, alpha=1.0)
    found = graph.node("Mul", [normed, opened], "delta_out")
    return graph.as_activations(found, "delta_out_half")
