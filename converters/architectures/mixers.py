"""What mixes the ids of a row in a block, as data: attention of two kinds, and what keeps a state instead."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from converters.architectures.parts import Keyless, Linear, Norm


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Which earlier block's keys and values a block reads, and how many heads they have.

    `key`, `value` and `key_norm` are there in most files, and used by none.
    """

    block: int
    kv_heads: int
    key: Linear | None = None
    value: Linear | None = None
    key_norm: Norm | None = None

    def tensor_names(self) -> Iterator[str]:
        yield from (part.weight for part in (self.key, self.value, self.key_norm) if part)


class Attention(msgspec.Struct, frozen=True, kw_only=True):
    """Grouped-query attention over a KV cache. Either `fused` ([q; k; v] rows) or the three.

    `rope` names a recipe of the model, empty for none. `interleaved` pairs (2i, 2i+1), llama.cpp's
    NORM; otherwise (i, i + dimensions/2), its NEOX. `window` 0 sees everything, W the last W ids
    with its own; in a bidirectional model the ids at most W/2 away. `alibi_bias` m > 0: slopes from
    2^(-8/heads) on with m = 8. Query and key norms are [head_size] wide, or the projection wide; with
    `is_normed_after` they come after the rotation.
    `has_output_gate`: each head's rows of `query` are [q; gate], and what is attended is multiplied
    by sigmoid(gate); `gate`, as wide as all heads, is a matrix of its own for that.
    `has_value_norm`: each head of the values is divided by its own length. With `reading` there are no
    keys and values, and `kv_heads` is 0.
    """

    heads: int
    kv_heads: int
    head_size: int
    scale: float
    output: Linear
    query: Linear | None = None
    key: Linear | None = None
    value: Linear | None = None
    fused: Linear | None = None
    has_output_gate: bool = False
    gate: Linear | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    is_normed_after: bool = False
    rope: str = "global"
    interleaved: bool = False
    window: int = 0
    softcap: float = 0.0
    sinks: str = ""
    alibi_bias: float = 0.0
    has_value_norm: bool = False
    reading: Reading | None = None

    def linears(self) -> Iterator[Linear]:
        for linear in (self.fused, self.query, self.key, self.value, self.gate, self.output):
            if linear is not None:
                yield linear

    def vectors(self) -> Iterator[str]:
        """Head norms and sinks; biases belong to their linears."""
        for norm in (self.query_norm, self.key_norm):
            if norm is not None:
                yield from (norm.weight, norm.bias)
        yield self.sinks
        if self.reading:
            yield from self.reading.tensor_names()


class LatentAttention(msgspec.Struct, frozen=True, kw_only=True):
    """Multi-head latent attention (DeepSeek V2) with the key's up-projection absorbed by the query.

    Per head the query is [nope | rope] numbers: `query`, or `query_down`, `query_norm`, `query_up`.
    `key_value_down` gives [latent | rope]; `key_value_norm` is of the latent. `key_up`
    [heads, latent, nope] and `value_up` [heads, value_size, latent] are stacks; older files have
    `key_value_up` [heads · (nope + value_size), latent] instead. One cached head of rope + latent.
    """

    heads: int
    rope_size: int
    nope_size: int
    latent: int
    value_size: int
    scale: float
    key_value_down: Linear
    key_value_norm: Norm
    output: Linear
    query: Linear | None = None
    query_down: Linear | None = None
    query_norm: Norm | None = None
    query_up: Linear | None = None
    key_up: str = ""
    value_up: str = ""
    key_value_up: str = ""
    rope: str = "global"
    interleaved: bool = True

    @property
    def kv_heads(self) -> int:
        return 1

    @property
    def head_size(self) -> int:
        return self.rope_size + self.latent

    def linears(self) -> Iterator[Linear]:
        """The stacks are not among them: they are multiplied head by head."""
        found = (
            self.query, self.query_down, self.query_up, self.key_value_down, self.output,
        )  # fmt: skip
        for linear in found:
            if linear is not None:
                yield linear

    def stacks(self) -> Iterator[str]:
        return (name for name in (self.key_up, self.value_up, self.key_value_up) if name)

    def vectors(self) -> Iterator[str]:
        for norm in (self.query_norm, self.key_value_norm):
            if norm is not None:
                yield norm.weight
        yield from self.stacks()


class GatedDeltaNet(Keyless, frozen=True, kw_only=True):
    """The linear attention of Qwen 3 Next and 3.5: one matrix a head is all that a row remembers.

    [q, k, v] = silu(causal_convolution(mixed h)), q and k of `key_heads` and v of `value_heads`
    heads of `size` numbers, q and k divided by their lengths; value head i reads key head i modulo
    `key_heads`, or where `is_grouped` the i-th of as many equal groups. The state S [size, size]
    becomes e^g S + β k (v - kᵀ e^g S), g = decay · softplus(alpha h + time_bias), β = sigmoid(beta h);
    out(norm(qᵀS / √size) · silu(gate h)).
    `fused` in place of `mixed` and `gate`, `beta_alpha` in place of the two: grouped files may have
    them, with rows [q; k; v; gate] and [beta; alpha] key head by key head.
    """

    key_heads: int
    value_heads: int
    size: int
    output: Linear
    kernel: str
    length: int
    decay: str
    time_bias: str
    norm: Norm
    mixed: Linear | None = None
    gate: Linear | None = None
    fused: Linear | None = None
    alpha: Linear | None = None
    beta: Linear | None = None
    beta_alpha: Linear | None = None
    is_grouped: bool = False

    @property
    def rounds(self) -> int:
        """Value heads that read one key head."""
        return self.value_heads // self.key_heads

    @property
    def channels(self) -> int:
        """Numbers that are convolved: q, k and v."""
        return (2 * self.key_heads + self.value_heads) * self.size

    def linears(self) -> Iterator[Linear]:
        found = (self.mixed, self.gate, self.fused, self.alpha, self.beta, self.beta_alpha)
        yield from (linear for linear in found if linear is not None)
        yield self.output

    def vectors(self) -> Iterator[str]:
        yield from (self.kernel, self.decay, self.time_bias, self.norm.weight)


class ShortConvolution(Keyless, frozen=True, kw_only=True):
    """LFM2's mixer: [b, c, x] = input h; out(c · causal_convolution(b · x)), depthwise, per row.

    `kernel` names an F32 tensor [channels, length]. The state is the last `length - 1` inputs.
    """

    input: Linear
    output: Linear
    kernel: str
    channels: int
    length: int

    def linears(self) -> Iterator[Linear]:
        yield from (self.input, self.output)

    def vectors(self) -> Iterator[str]:
        yield self.kernel


class Mamba2(Keyless, frozen=True, kw_only=True):
    """Mamba 2's mixer: a row remembers one matrix a head, which decays by a number of each id.

    [z, x, B, C, dt] = input h, with x, B, C = silu(causal_convolution([x, B, C])), x of `heads` heads of
    `size` numbers, B and C of `groups` equal groups of heads, `state` numbers each. With
    d = softplus(dt + time_bias) the state S [state, size] becomes e^(d · decay) S + B (d x)ᵀ;
    y = CᵀS + skip · x; out(norm(y · silu(z))), the norm within each group of heads.
    `norm` names its weight, [groups, heads · size / groups].
    """

    heads: int
    size: int
    groups: int
    state: int
    input: Linear
    output: Linear
    kernel: str
    kernel_bias: str
    length: int
    decay: str
    time_bias: str
    skip: str
    norm: str

    @property
    def inner(self) -> int:
        """Numbers of x, of z and of y."""
        return self.heads * self.size

    @property
    def channels(self) -> int:
        """Numbers that are convolved: x, B and C."""
        return self.inner + 2 * self.groups * self.state

    def linears(self) -> Iterator[Linear]:
        yield from (self.input, self.output)

    def vectors(self) -> Iterator[str]:
        yield from (self.kernel, self.kernel_bias, self.decay, self.time_bias, self.skip, self.norm)


Shape = tuple[int, ...]
Recurrent = ShortConvolution | GatedDeltaNet | Mamba2


def states_of(mixer: Recurrent) -> dict[str, Shape]:
    """What a row carries from run to run instead of keys and values, in fp32; by name."""
    states: dict[str, Shape] = {"conv": (mixer.length - 1, mixer.channels)}
    if isinstance(mixer, GatedDeltaNet):
        states["delta"] = (mixer.value_heads, mixer.size, mixer.size)
    if isinstance(mixer, Mamba2):
        states["mamba"] = (mixer.heads, mixer.state, mixer.size)
    return states
