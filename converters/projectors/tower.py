"""What a projector file says of its vision tower: which tensor plays which role. Pure data.

Made from the header alone by one `describe` per kind of projector; the targets ask these Structs and
never look at metadata or tensor names of their own. A feature that a kind lacks keeps its default.
The inputs and outputs that a tower has are those of `converters.vision_artifact`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from converters.architectures.parts import Linear, Norm
from converters.vision_artifact import ImageForm

Activation = Literal["gelu", "gelu_tanh", "gelu_quick", "silu"]
# Which numbers of a head are rotated together: i and i + half, or 2 i and 2 i + 1.
Rotation = Literal["", "halves", "neighbours"]


class Perceptron(msgspec.Struct, frozen=True, kw_only=True):
    """down(activation(up x)), or with `gate` down(activation(gate x) · up x)."""

    activation: Activation
    up: Linear
    down: Linear
    gate: Linear | None = None

    def linears(self) -> Iterator[Linear]:
        yield from (each for each in (self.gate, self.up, self.down) if each is not None)


class VisionAttention(msgspec.Struct, frozen=True, kw_only=True):
    """Every patch of a tile sees every other. Either `packed`, its rows [query; key; value], or the three.

    `query_norm` and `key_norm` are over all heads together, or with `has_norm_per_head` over each.
    `is_windowed`: patches see those of their own segment only.
    """

    heads: int
    head_size: int
    output: Linear
    packed: Linear | None = None
    query: Linear | None = None
    key: Linear | None = None
    value: Linear | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    has_norm_per_head: bool = False
    is_windowed: bool = False

    def linears(self) -> Iterator[Linear]:
        found = (self.packed, self.query, self.key, self.value, self.output)
        yield from (each for each in found if each is not None)

    def norms(self) -> Iterator[Norm]:
        yield from (each for each in (self.query_norm, self.key_norm) if each is not None)


class VisionBlock(msgspec.Struct, frozen=True, kw_only=True):
    """x += attention_scale · attention(attention_norm(x)), then the same with the feed-forward network.

    The scales are vectors as wide as x, "" where there is none.
    """

    attention_norm: Norm
    attention: VisionAttention
    feed_forward_norm: Norm
    feed_forward: Perceptron
    attention_scale: str = ""
    feed_forward_scale: str = ""


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """The table [rows, E] that says where a patch is; row 0 is the class token's where there is one.

    `is_interpolated`: rows are mixed by the inputs `place_ids` and `place_weights`.
    """

    table: str
    rows: int
    is_interpolated: bool = False


class Pool(msgspec.Struct, frozen=True, tag=True):
    """Patches in raster order, on a grid of `grid` × `grid`: the mean of each `side` × `side` of them."""

    grid: int
    side: int


class Shuffle(msgspec.Struct, frozen=True, tag=True):
    """Patches in raster order, on a grid of `grid` × `grid`: each `side` × `side` become one, side by side.

    [grid², E] → [(grid / side)², side² · E], in raster order inside and outside.
    """

    grid: int
    side: int


class Group(msgspec.Struct, frozen=True, tag=True):
    """Each `count` neighbours in the order of the patches become one: [P, E] → [P / count, count · E].

    One patch behind the other or, `is_interleaved`, the first number of each, then the second of each …
    """

    count: int
    is_interleaved: bool = False


class Bend(msgspec.Struct, frozen=True, tag=True):
    activation: Activation


class StepNorm(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """A norm with an epsilon of its own."""

    norm: Norm
    epsilon: float


class Turned(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """x · W for a weight that lies as [columns, rows]: what takes `columns` numbers to `rows`."""

    weight: str
    rows: int
    columns: int


Step = Pool | Shuffle | Group | Bend | Turned | Linear | StepNorm


class Tap(msgspec.Struct, frozen=True, kw_only=True):
    """`steps` of what block `block` gives, put behind the tower's own numbers (DeepStack)."""

    block: int
    steps: tuple[Step, ...]


class VisionShape(msgspec.Struct, frozen=True, kw_only=True):
    """A tower: patches → the sum of the products with `patches` → class token in front → places → first
    norm → blocks → last norm → class token off → `steps`. The first of `patches` has the bias.

    `embedding_length` is E of the tower, `width` that of the text model. `tile_patches` counts the
    patches of a tile where all have one size, else 0; `most_patches` those of the largest run, and
    `most_tiles` the tiles of it. `unused` are tensors known to have no role.
    """

    name: str
    form: ImageForm
    width: int
    embedding_length: int
    epsilon: float
    patches: tuple[Linear, ...]
    class_token: str = ""
    places: Places | None = None
    rotation: Rotation = ""
    first_norm: Norm | None = None
    blocks: tuple[VisionBlock, ...]
    last_norm: Norm | None = None
    steps: tuple[Step, ...]
    taps: tuple[Tap, ...] = ()
    row_break: str = ""
    is_bidirectional: bool = False
    tile_patches: int = 0
    most_patches: int
    most_tiles: int = 1
    unused: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names, as `VisionArtifact.inputs`."""
        names = ["patches"]
        if self.rotation:
            names += ["cos", "sin"]
        if any(block.attention.is_windowed for block in self.blocks):
            names.append("segments")
        if self.places and self.places.is_interpolated:
            names += ["place_ids", "place_weights"]
        return tuple(names)

    def all_steps(self) -> Iterator[Step]:
        yield from self.steps
        for tap in self.taps:
            yield from tap.steps

    def linears(self) -> Iterator[Linear]:
        """Every matrix but the `Turned` ones."""
        yield from self.patches
        for block in self.blocks:
            yield from block.attention.linears()
            yield from block.feed_forward.linears()
        yield from (step for step in self.all_steps() if isinstance(step, Linear))

    def norms(self) -> Iterator[Norm]:
        yield from (norm for norm in (self.first_norm, self.last_norm) if norm is not None)
        for block in self.blocks:
            yield from (block.attention_norm, block.feed_forward_norm)
            yield from block.attention.norms()
        yield from (step.norm for step in self.all_steps() if isinstance(step, StepNorm))

    def turned(self) -> Iterator[Turned]:
        yield from (step for step in self.all_steps() if isinstance(step, Turned))

    def vectors(self) -> Iterator[str]:
        """Tensors that are neither of a matrix nor of a norm."""
        found = [self.class_token, self.row_break]
        for block in self.blocks:
            found += [block.attention_scale, block.feed_forward_scale]
        yield from (name for name in found if name)

    def tensor_names(self) -> frozenset[str]:
        """Every tensor that some role uses, and those known to have none."""
        names = {*self.vectors(), *self.unused}
        for linear in self.linears():
            names |= {linear.weight, linear.bias}
        for norm in self.norms():
            names |= {norm.weight, norm.bias}
        names.update(step.weight for step in self.turned())
        if self.places:
            names.add(self.places.table)
        return frozenset(names - {""})
