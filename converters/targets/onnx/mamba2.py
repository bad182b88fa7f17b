"""Mamba 2 in a graph: gated linear attention with C for queries, B for keys and d · x for values.

The operator keeps S [heads, state, size] and decays it before it adds, as `Mamba2` says it; heads of one
group read the same query and key (`q_num_heads` are the groups). All in fp32, as `recurrent` says.
"""

from __future__ import annotations

import numpy as np

from converters.architectures.mixers import Mamba2, states_of
from converters.targets.onnx.graph import MICROSOFT
from converters.targets.onnx.parts import Parts
from converters.targets.onnx.recurrent import convolved, state, wide


def mamba2(parts: Parts, x: str, index: int, mixer: Mamba2) -> str:
    """[B, S, inner], before the output projection."""
    graph = parts.graph
    gate, mixed, step = _split(
        parts, wide(parts, x, mixer.input), (mixer.inner, mixer.channels, mixer.heads), "mamba_in"
    )
    mixed = convolved(
        parts, mixed, index, mixer, bias=parts.vector(mixer.kernel_bias), activation="silu"
    )
    keys = mixer.groups * mixer.state
    inner, key, query = _split(parts, mixed, (mixer.inner, keys, keys), "mamba_conv")
    biased = graph.node("Add", [step, parts.vector(mixer.time_bias)], "mamba_biased_step")
    step = graph.node("Softplus", [biased], "mamba_step")
    heads = graph.integers(0, 0, mixer.heads, mixer.size)
    inner = graph.node("Reshape", [inner, heads], "mamba_heads")
    found = _attended(parts, index, mixer, query, key, inner, step)
    skipped = graph.node("Mul", [inner, parts.vector(mixer.skip)], "mamba_skip")
    skipped = graph.node("Reshape", [skipped, graph.integers(0, 0, mixer.inner)], "mamba_skipped")
    found = graph.node("Add", [found, skipped], "mamba_with_skip")
    return _gated_norm(parts, found, gate, mixer)


def _split(parts: Parts, x: str, sizes: tuple[int, ...], label: str) -> list[str]:
    graph = parts.graph
    names = [graph.scoped(f"{label}.{place}") for place in range(len(sizes))]
    return graph.nodes("Split", [x, graph.integers(*sizes)], names, axis=-1)


def _attended(
    parts: Parts, index: int, mixer: Mamba2, query: str, key: str, inner: str, step: str
) -> str:
    """[B, S, inner] out of the state; `inner` [B, S, heads, size], `step` [B, S, heads]."""
    graph = parts.graph
    decay = graph.node("Mul", [step, parts.vector(mixer.decay)], "mamba_decay")
    column = graph.node("Unsqueeze", [step, graph.integers(3)], "mamba_steps")
    value = graph.node("Mul", [inner, column], "mamba_stepped")
    value = graph.node("Reshape", [value, graph.integers(0, 0, mixer.inner)], "mamba_value")
    past, present = state(parts, index, "mamba", states_of(mixer)["mamba"])
    return graph.nodes(
        "LinearAttention",
        [query, key, value, past, decay],
        [graph.scoped("mamba"), present],
        domain=MICROSOFT,
        q_num_heads=mixer.groups,
        kv_num_heads=mixer.heads,
        update_rule="gated",
        scale=1.0,
    )[0]


def _gated_norm(parts: Parts, x: str, gate: str, mixer: Mamba2) -> str:
    """norm(x · silu(gate)) within each group; the weight comes after, since it differs by group."""
    graph, each = parts.graph, mixer.inner // mixer.groups
    opened = graph.node("QuickGelu", [gate], "mamba_gate", domain=MICROSOFT, alpha=1.0)
    gated = graph.node("Mul", [x, opened], "mamba_gated")
    cut = graph.integers(0, 0, mixer.groups, each)
    grouped = graph.node("Reshape", [gated, cut], "mamba_groups")
    ones = graph.constant(f"f32.ones.{each}", np.ones(each, np.float32))
    normed = graph.node(
        "RMSNormalization", [grouped, ones], "mamba_normed", axis=-1, epsilon=parts.model.epsilon
    )
    whole = graph.node("Reshape", [normed, graph.integers(0, 0, mixer.inner)], "mamba_whole")
    found = graph.node("Mul", [whole, parts.vector(mixer.norm)], "mamba_out")
    return graph.as_activations(found, "mamba_out_half")
