"""Where the tensors of latent attention, short convolutions, Gated DeltaNets and Mamba 2 go on MLX."""

from __future__ import annotations

from converters.architectures.mixers import GatedDeltaNet, LatentAttention, Mamba2, ShortConvolution
from converters.architectures.parts import Linear
from converters.targets.mlx.layout import Run
from converters.targets.mlx.models.family import Family
from converters.targets.mlx.placer import Placer


def place_latent(placer: Placer, stem: str, attention: LatentAttention, family: Family) -> None:
    """Queries and what they meet, then the two up-projections, in one matrix or as two stacks."""
    names = family.names
    for role in ("query", "query_down", "query_up", "key_value_down"):
        linear = getattr(attention, role)
        if linear is not None:
            placer.matrix(f"{stem}.{getattr(names, role)}", role, linear)
    placer.matrix(f"{stem}.{names.attention_output}", "attention_output", attention.output)
    placer.norm(f"{stem}.{names.query_down_norm}", attention.query_norm)
    placer.norm(f"{stem}.{names.key_value_norm}", attention.key_value_norm)
    if family.joins_latent:
        _place_joint(placer, f"{stem}.{names.key_value_up}", attention)
    else:
        _place_stacks(placer, f"{stem}.{names.key_up}", f"{stem}.{names.value_up}", attention)


def _place_joint(placer: Placer, path: str, attention: LatentAttention) -> None:
    """Rows [key; value] of each head over the latent: as it is, or dense from the two stacks."""
    heads, nope, latent = attention.heads, attention.nope_size, attention.latent
    step = nope + attention.value_size
    if attention.key_value_up:
        whole = Linear(weight=attention.key_value_up, rows=heads * step, columns=latent)
        placer.stack(path, whole, (heads * step,))
        return
    keys, values = _stacks(attention)
    placer.stack(
        path,
        keys,
        (heads * step,),
        runs=tuple(Run(head * latent, head * step, latent) for head in range(heads)),
        turned_columns=latent,
    )
    size = attention.value_size
    placer.stack(
        path,
        values,
        (heads * step,),
        runs=tuple(Run(head * size, head * step + nope, size) for head in range(heads)),
        is_dense=True,
    )


def _place_stacks(placer: Placer, key: str, value: str, attention: LatentAttention) -> None:
    """[heads, latent, nope] and [heads, value, latent]; the first dense where it has to be turned."""
    heads, nope, latent = attention.heads, attention.nope_size, attention.latent
    size, step = attention.value_size, nope + attention.value_size
    if not attention.key_value_up:
        keys, values = _stacks(attention)
        placer.stack(key, keys, (heads, latent))
        placer.stack(value, values, (heads, size))
        return
    joint = Linear(weight=attention.key_value_up, rows=heads * step, columns=latent)
    placer.stack(
        key,
        joint,
        (heads, latent),
        runs=tuple(Run(head * step, head * latent, nope) for head in range(heads)),
        turned_columns=nope,
    )
    placer.stack(
        value,
        joint,
        (heads, size),
        runs=tuple(Run(head * step + nope, head * size, size) for head in range(heads)),
    )


def _stacks(attention: LatentAttention) -> tuple[Linear, Linear]:
    heads, latent = attention.heads, attention.latent
    keys = Linear(weight=attention.key_up, rows=heads * latent, columns=attention.nope_size)
    values = Linear(weight=attention.value_up, rows=heads * attention.value_size, columns=latent)
    return keys, values


def place_convolution(
    placer: Placer, stem: str, convolution: ShortConvolution, family: Family
) -> None:
    """The kernel [channels, length] has one input channel for each output: [channels, length, 1]."""
    stem = f"{stem}.{family.names.convolution}"
    placer.matrix(f"{stem}.in_proj", "", convolution.input)
    placer.matrix(f"{stem}.out_proj", "", convolution.output)
    shape = (convolution.channels, convolution.length, 1)
    size = convolution.channels * convolution.length
    placer.vector(f"{stem}.conv.weight", convolution.kernel, size, shape=shape)


def place_mamba2(placer: Placer, stem: str, mamba: Mamba2, family: Family) -> None:
    """The rows are in the module's order already."""
    stem, channels = f"{stem}.{family.names.mamba}", mamba.channels
    placer.matrix(f"{stem}.in_proj", "", mamba.input)
    placer.matrix(f"{stem}.out_proj", "", mamba.output)
    shape = (channels, mamba.length, 1)
    placer.vector(f"{stem}.conv1d.weight", mamba.kernel, channels * mamba.length, shape=shape)
    placer.vector(f"{stem}.conv1d.bias", mamba.kernel_bias, channels)
    placer.vector(f"{stem}.dt_bias", mamba.time_bias, mamba.heads, is_wide=True)
    placer.vector(f"{stem}.A_log", mamba.decay, mamba.heads, function="log of negative")
    placer.vector(f"{stem}.D", mamba.skip, mamba.heads)
    placer.vector(f"{stem}.norm.weight", mamba.norm, mamba.inner)


def place_delta_net(placer: Placer, stem: str, net: GatedDeltaNet, family: Family) -> None:
    """Value heads of one key head stand together on MLX, one round of all key heads in some files."""
    stem = f"{stem}.{family.names.delta_net}"
    keys, size, order = 2 * net.key_heads * net.size, net.size, head_order(net)
    _place_inputs(placer, stem, net)
    _place_rates(placer, stem, net)
    is_moved = order != tuple(range(net.value_heads))
    placer.matrix(f"{stem}.out_proj", "", net.output, column_order=order if is_moved else ())
    placer.vector(
        f"{stem}.conv1d.weight",
        net.kernel,
        net.channels * net.length,
        shape=(net.channels, net.length, 1),
        runs=_runs(order, size * net.length, keys * net.length),
    )
    runs = _runs(order, 1)
    placer.vector(f"{stem}.dt_bias", net.time_bias, net.value_heads, runs=runs)
    placer.vector(
        f"{stem}.A_log", net.decay, net.value_heads, runs=runs, function="log of negative"
    )
    placer.norm(f"{stem}.norm", net.norm)


def _place_inputs(placer: Placer, stem: str, net: GatedDeltaNet) -> None:
    """What is convolved and the gate, out of one matrix or two."""
    keys, size, order = net.key_heads * net.size, net.size, head_order(net)
    qkv, gate = f"{stem}.in_proj_qkv", f"{stem}.in_proj_z"
    if net.mixed and net.gate:
        placer.matrix(qkv, "", net.mixed, runs=_runs(order, size, 2 * keys))
        placer.matrix(gate, "", net.gate, runs=_runs(order, size))
        return
    assert net.fused is not None
    values, step = net.rounds * size, 2 * (1 + net.rounds) * size
    heads = range(net.key_heads)
    runs = [Run(head * step, head * size, size) for head in heads]
    runs += [Run(head * step + size, keys + head * size, size) for head in heads]
    runs += [Run(head * step + 2 * size, 2 * keys + head * values, values) for head in heads]
    placer.stack(qkv, net.fused, (net.channels,), runs=tuple(runs))
    last = step - values
    runs = [Run(head * step + last, head * values, values) for head in heads]
    placer.stack(gate, net.fused, (net.key_heads * values,), runs=tuple(runs))


def _place_rates(placer: Placer, stem: str, net: GatedDeltaNet) -> None:
    """Alpha and beta of each value head, out of one matrix or two."""
    alpha, beta = f"{stem}.in_proj_a", f"{stem}.in_proj_b"
    if net.alpha and net.beta:
        runs = _runs(head_order(net), 1)
        placer.matrix(alpha, "", net.alpha, runs=runs)
        placer.matrix(beta, "", net.beta, runs=runs)
        return
    assert net.beta_alpha is not None
    count = net.rounds
    for path, place in ((beta, 0), (alpha, count)):
        runs = tuple(
            Run(2 * count * head + place, count * head, count) for head in range(net.key_heads)
        )
        placer.stack(path, net.beta_alpha, (net.value_heads,), runs=runs)


def head_order(net: GatedDeltaNet) -> tuple[int, ...]:
    """For each value head on MLX, which one it is in the file."""
    if net.is_grouped:
        return tuple(range(net.value_heads))
    return tuple(
        turn * net.key_heads + key for key in range(net.key_heads) for turn in range(net.rounds)
    )


def _runs(order: tuple[int, ...], size: int, kept: int = 0) -> tuple[Run, ...]:
    """Heads of `size` rows in this order, after `kept` rows that stay."""
    if order == tuple(range(len(order))):
        return (Run(0, 0, kept + len(order) * size),)
    heads = tuple(Run(kept + of * size, kept + at * size, size) for at, of in enumerate(order))
    return (Run(0, 0, kept), *heads) if kept else heads
