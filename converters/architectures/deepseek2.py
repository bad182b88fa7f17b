"""`deepseek2`: DeepSeek V2, V3 and R1, and what else uses their latent attention (GLM 4.7 Flash).

Source: llama.cpp, `LLM_ARCH_DEEPSEEK2` and `llm_build_deepseek2`: the head's key is [nope | rope],
rotated as NORM pairs in the rope part only; the first `leading_dense_block_count` blocks are dense;
YaRN leaves cos and sin as they are and sharpens the scores by (1 + 0.1 m ln factor)², where the file
holds 0.1 m as `yarn_log_multiplier`. V3 and R1 choose groups of experts first. NOTE: the largest V2 does
so by each group's best alone, which files cannot say; those that say groups without a sigmoid are refused.
"""

from __future__ import annotations

import math

from msgspec.structs import replace

from converters.architectures import decoder, mixture
from converters.architectures.header import Header
from converters.architectures.mistral3 import temperature
from converters.architectures.mixers import LatentAttention
from converters.architectures.model import BlockShape, ModelShape, RopeRecipe
from converters.architectures.parts import Linear
from converters.architectures.rope import magnitude
from converters.architectures.rope_recipe import rope_recipe
from converters.errors import MalformedFile, Unsupported

ROTATED_STEP = 16


def describe(header: Header) -> ModelShape:
    """Raises Unsupported for expert groups and head sizes that cannot be rotated."""
    recipe, sharpening = _recipe(header)
    routing = mixture.routing_of(header)
    groups = header.count("expert_group_count", 1)
    if groups > 1 and routing.get("gating") == "softmax":
        raise Unsupported(f"deepseek2: softmax experts in {groups} groups are not supported")

    def block(index: int) -> BlockShape:
        attention = _attention(header, index, sharpening)
        network = mixture.network(header, index, **routing)
        return decoder.pre_norm_block(header, index, attention, network)

    return decoder.decoder(header, block, {"global": recipe}, temperature=temperature(header))


def _recipe(header: Header) -> tuple[RopeRecipe, float]:
    """The rope table, and what the scores are multiplied by on top of 1/√head_size."""
    rope_size, _ = _cached_sizes(header, "blk.0.attn")
    recipe = rope_recipe(header, rope_size)
    if recipe.scaling != "yarn":
        return recipe, recipe.magnitude**2
    multiplier = recipe.yarn_log_multiplier / 0.1
    if multiplier:
        recipe = replace(recipe, yarn_log_multiplier=1.0)
    sharpening = magnitude(recipe) * (1.0 + 0.1 * multiplier * math.log(recipe.scale))
    return recipe, sharpening**2


def _cached_sizes(header: Header, stem: str) -> tuple[int, int]:
    """(rotated numbers, latent numbers) of the one cached head."""
    rows = header.linear(f"{stem}_kv_a_mqa", columns=header.width).rows
    latent = header.tensor(f"{stem}_kv_a_norm.weight").shape[0]
    rope_size = rows - latent
    if rope_size <= 0:
        raise MalformedFile(f"'{stem}_kv_a_mqa.weight': {rows} rows for {latent} latent numbers")
    if rope_size % ROTATED_STEP or rows % ROTATED_STEP:
        raise Unsupported(f"{header.architecture}: cached heads of {rows} are not supported")
    return rope_size, latent


def _attention(header: Header, index: int, sharpening: float) -> LatentAttention:
    stem, width = f"blk.{index}.attn", header.width
    heads = header.counts("attention.head_count", index + 1)[index]
    rope_size, latent = _cached_sizes(header, stem)
    query = _query(header, stem)
    size, rest = divmod(query.rows, heads) if heads else (0, 1)
    if rest or size <= rope_size:
        raise MalformedFile(f"'{query.weight}': {query.rows} rows for {heads} heads")
    output = header.linear(f"{stem}_output", rows=width)
    value_size, rest = divmod(output.columns, heads)
    is_split = header.has_tensor(f"{stem}_k_b.weight")
    attention = LatentAttention(
        heads=heads,
        rope_size=rope_size,
        nope_size=size - rope_size,
        latent=latent,
        value_size=value_size,
        scale=sharpening / math.sqrt(size),
        query=query,
        key_value_down=header.linear(f"{stem}_kv_a_mqa", columns=width),
        key_value_norm=decoder.norm(header, f"{stem}_kv_a_norm", latent),
        output=output,
        key_up=_stack(header, stem, "k_b"),
        value_up=_stack(header, stem, "v_b"),
        key_value_up="" if is_split else f"{stem}_kv_b.weight",
    )
    _check_stacks(header, attention)
    return _with_low_rank_query(header, stem, attention)


def _query(header: Header, stem: str) -> Linear:
    """What gives the heads their queries: `attn_q` (lite), or the second of two low-rank factors."""
    if header.has_tensor(f"{stem}_q.weight"):
        return header.linear(f"{stem}_q", columns=header.width)
    return header.linear(f"{stem}_q_b")


def _with_low_rank_query(header: Header, stem: str, attention: LatentAttention) -> LatentAttention:
    if header.has_tensor(f"{stem}_q.weight"):
        return attention
    down = header.linear(f"{stem}_q_a", columns=header.width)
    up = header.linear(f"{stem}_q_b", columns=down.rows)
    norm = decoder.norm(header, f"{stem}_q_a_norm", down.rows)
    return replace(attention, query=None, query_down=down, query_norm=norm, query_up=up)


def _stack(header: Header, stem: str, part: str) -> str:
    name = f"{stem}_{part}.weight"
    return name if header.has_tensor(f"{stem}_k_b.weight") else ""


def _check_stacks(header: Header, attention: LatentAttention) -> None:
    heads, latent, nope = attention.heads, attention.latent, attention.nope_size
    wanted = {
        attention.key_up: (heads, latent, nope),
        attention.value_up: (heads, attention.value_size, latent),
        attention.key_value_up: (heads * (nope + attention.value_size), latent),
    }
    for name in attention.stacks():
        if header.tensor(name).shape != wanted[name]:
            shape = list(header.tensor(name).shape)
            raise MalformedFile(f"tensor {name!r} has shape {shape}, not {list(wanted[name])}")
