"""`gemma3n`: Gemma 3n's text model (E2B, E4B); images and sound are left out.

Source: llama.cpp, `src/models/gemma3n.cpp` and the reuse of caches in `llama_model::create_memory`;
transformers, `modeling_gemma3n.py` (`Gemma3nTextModel`). As gemma3, with four residual streams, inputs
of each block's own, low-rank residuals, gates that are cut off in the first blocks, scores that only
the norms of q and k scale, and values normed without a weight. The last blocks read the keys and
values of the last block of their kind that has its own. llama.cpp takes the deviation of gates as a
sample's, transformers (and mlx-lm) as a population's: 1 part in 10^4 of it at the widths there are.
"""

from __future__ import annotations

import math

from msgspec.structs import replace

from converters.architectures import decoder, gemma3
from converters.architectures.altup import AltUp, BlockAltUp
from converters.architectures.attention import grouped_attention, windows
from converters.architectures.header import Header
from converters.architectures.mixers import Attention, Reading
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.parts import FeedForward, Linear
from converters.errors import MalformedFile, Unsupported

WINDOW_PERIOD = 5
# What llama.cpp takes for granted, where a file does not say it.
BLOCKS_WITH_KEYS = 20
SPARSE_BLOCKS = 10
CUTOFF = 1.6448533535003662
STREAMS = 4
INPUTS = 256
LOGIT_SOFTCAP = 30.0


def describe(header: Header) -> ModelShape:
    altup = _altup(header)
    attentions = _attentions(header)
    model = decoder.decoder(
        header,
        lambda index: _block(header, index, attentions[index], altup),
        gemma3.ropes(header),
        embedding_scale=math.sqrt(header.width),
        logit_softcap=header.number("final_logit_softcapping", LOGIT_SOFTCAP),
    )
    if model.encoder:
        raise Unsupported(f"{header.architecture} with a pooling is not supported")
    # Ollama's files have rows for images and sound in the first table only.
    return replace(model, altup=altup, vocabulary=min(model.vocabulary, altup.table.rows))


def _altup(header: Header) -> AltUp:
    if active := header.count("altup.active_idx", 0):
        raise Unsupported(f"{header.architecture}: stream {active} as the active one")
    streams, width = header.count("altup.num_inputs", STREAMS), header.width
    inputs = header.count("embedding_length_per_layer_input", INPUTS)
    if streams < 2 or not inputs:
        raise MalformedFile(f"{header.architecture}: {streams} streams, {inputs} inputs a block")
    joint = decoder.block_count(header) * inputs
    return AltUp(
        streams=streams,
        inputs=inputs,
        spread=_stack(header, "altup_proj.weight", streams - 1, width),
        gather=_stack(header, "altup_unembd_proj.weight", streams - 1, width).weight,
        table=header.linear("per_layer_token_embd", columns=joint),
        projection=header.linear("per_layer_model_proj", columns=width, rows=joint),
        input_norm=decoder.norm(header, "per_layer_proj_norm", inputs),
    )


def _stack(header: Header, name: str, count: int, width: int) -> Linear:
    """Square matrices, one below the other."""
    shape, wanted = header.tensor(name).shape, (count, width, width)
    if shape != wanted:
        raise MalformedFile(f"tensor {name!r} has shape {list(shape)}, not {list(wanted)}")
    return Linear(weight=name, rows=count * width, columns=width)


def _attentions(header: Header) -> list[Attention]:
    """Of all blocks: a reading one is made of what it reads."""
    blocks = decoder.block_count(header)
    shared = header.count("attention.shared_kv_layers", max(blocks - BLOCKS_WITH_KEYS, 0))
    if shared >= blocks:
        raise MalformedFile(f"{header.architecture}.attention.shared_kv_layers is {shared}")
    window_of, owners = windows(header, WINDOW_PERIOD), dict[bool, int]()
    found: list[Attention] = []
    for index in range(blocks):
        window = window_of(index)
        if index < blocks - shared:
            owners[bool(window)] = index
            found.append(_owning(header, index, window))
        elif bool(window) not in owners:
            raise MalformedFile(f"{header.architecture}: block {index} has no keys to read")
        else:
            owner = owners[bool(window)]
            found.append(_reading(header, index, owner, found[owner]))
    return found


def _owning(header: Header, index: int, window: int) -> Attention:
    attention = grouped_attention(
        header,
        index,
        interleaved=False,
        rope="local" if window else "global",
        scale=1.0,
        window=window,
        has_head_norms=True,
    )
    return replace(attention, has_value_norm=True)


def _reading(header: Header, index: int, owner: int, read: Attention) -> Attention:
    """llama.cpp wants keys and values here too, though nothing reads them; other writers may not."""
    stem, width = f"blk.{index}.attn", header.width
    joint, kv_rows = read.heads * read.head_size, read.kv_heads * read.head_size

    def unread(part: str) -> Linear | None:
        name = f"{stem}_{part}"
        is_there = header.has_tensor(f"{name}.weight")
        return header.linear(name, columns=width, rows=kv_rows) if is_there else None

    has_norm = header.has_tensor(f"{stem}_k_norm.weight")
    return replace(
        read,
        kv_heads=0,
        query=header.linear(f"{stem}_q", columns=width, rows=joint),
        key=None,
        value=None,
        fused=None,
        output=header.linear(f"{stem}_output", columns=joint, rows=width),
        query_norm=decoder.norm(header, f"{stem}_q_norm", read.head_size),
        key_norm=None,
        has_value_norm=False,
        reading=Reading(
            block=owner,
            kv_heads=read.kv_heads,
            key=unread("k"),
            value=unread("v"),
            key_norm=decoder.norm(header, f"{stem}_k_norm", read.head_size) if has_norm else None,
        ),
    )


def _block(header: Header, index: int, attention: Attention, altup: AltUp) -> BlockShape:
    block = decoder.sandwich_block(header, index, attention, _feed_forward(header, index))
    return replace(block, altup=_block_altup(header, index, altup))


def _feed_forward(header: Header, index: int) -> FeedForward:
    feed_forward = decoder.gated_feed_forward(header, index, activation="gelu_tanh")
    return replace(feed_forward, cutoff=_cutoff(header, index))


def _cutoff(header: Header, index: int) -> float | None:
    """Files say it for every block, as minus infinity where nothing is cut off."""
    cutoffs = header.numbers("activation_sparsity_scale")
    if cutoffs is None:
        return CUTOFF if index < SPARSE_BLOCKS else None
    if len(cutoffs) <= index or math.isnan(cutoffs[index]) or cutoffs[index] == math.inf:
        raise MalformedFile(f"{header.architecture}.activation_sparsity_scale: {list(cutoffs)}")
    return cutoffs[index] if math.isfinite(cutoffs[index]) else None


def _block_altup(header: Header, index: int, altup: AltUp) -> BlockAltUp:
    stem, width, streams = f"blk.{index}", header.width, altup.streams
    left = header.linear(f"{stem}.laurel_l", columns=width)
    return BlockAltUp(
        router=header.linear(f"{stem}.altup_router", columns=width, rows=streams),
        router_norm=decoder.norm(header, f"{stem}.altup_router_norm", width),
        predict=header.linear(f"{stem}.altup_predict_coef", columns=streams, rows=streams**2),
        correct=header.linear(f"{stem}.altup_correct_coef", columns=streams, rows=streams),
        scale=header.vector(f"{stem}.altup_correct_scale.weight", width),
        left=left,
        right=header.linear(f"{stem}.laurel_r", columns=left.rows, rows=width),
        low_rank_norm=decoder.norm(header, f"{stem}.laurel_post_norm", width),
        own_gate=header.linear(f"{stem}.inp_gate", columns=width, rows=altup.inputs),
        own_output=header.linear(f"{stem}.proj", columns=altup.inputs, rows=width),
        own_norm=decoder.norm(header, f"{stem}.post_norm", width),
    )
