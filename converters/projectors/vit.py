"""What vision transformers have in common, as `describe` of each kind asks for it.

Every count is in range and every tensor has the shape that its role asks for, or MalformedFile names it.
Source: llama.cpp's `clip.cpp`.
"""

from __future__ import annotations

from typing import cast

from converters.architectures.header import Header
from converters.architectures.parts import Linear, Norm
from converters.errors import MalformedFile, Unsupported
from converters.projectors.library import FRAMES
from converters.projectors.tower import Activation, Perceptron, Places, VisionAttention, VisionBlock

# Far above any tower that there is.
MAX_WIDTH, MAX_HEADS, MAX_PATCH, MAX_SIDE, MAX_MERGE = 1 << 15, 1 << 10, 256, 1 << 13, 16
CHANNELS = 3


def bounded(header: Header, key: str, most: int, default: int | None = None) -> int:
    """A count from 1 to `most`."""
    value = header.count(key, default)
    if not 1 <= value <= most:
        raise MalformedFile(f"clip.{key} is {value}: it must be between 1 and {most}")
    return value


def width_of(header: Header) -> int:
    return bounded(header, "vision.embedding_length", MAX_WIDTH)


def block_count(header: Header) -> int:
    """Each block has a tensor of its own, at least."""
    count = bounded(header, "vision.block_count", MAX_WIDTH)
    if not header.has_tensor(f"v.blk.{count - 1}.attn_out.weight"):
        raise MalformedFile(f"clip.vision.block_count is {count}, and there are fewer blocks")
    return count


def epsilon_of(header: Header) -> float:
    return header.positive("vision.attention.layer_norm_epsilon")


def color(header: Header, key: str) -> tuple[float, float, float]:
    """`image_mean` or `image_std`: finite numbers, one for each channel."""
    found = header.numbers(f"vision.{key}") or ()
    if len(found) != CHANNELS or not all(-1e3 < number < 1e3 for number in found):
        raise MalformedFile(f"clip.vision.{key} does not hold {CHANNELS} numbers in range")
    if key == "image_std" and min(found) <= 0:
        raise MalformedFile(f"clip.vision.{key} is not above zero")
    return cast("tuple[float, float, float]", found)


def activation_of(header: Header) -> Activation:
    """NOTE: what is called GELU is computed by its tanh formula there, for every model."""
    gelu, silu = header.flag("use_gelu", False), header.flag("use_silu", False)
    if gelu and silu:
        raise MalformedFile("clip.use_gelu and clip.use_silu are both true")
    return "gelu_tanh" if gelu else "silu" if silu else "gelu_quick"


def norm(header: Header, stem: str, width: int, *, is_centered: bool = True) -> Norm:
    weight = header.vector(f"{stem}.weight", width)
    bias = header.optional_vector(f"{stem}.bias", width)
    return Norm(weight=weight, bias=bias, is_centered=is_centered)


def optional_norm(
    header: Header, stem: str, width: int, *, is_centered: bool = True
) -> Norm | None:
    if not header.has_tensor(f"{stem}.weight"):
        return None
    return norm(header, stem, width, is_centered=is_centered)


def patch_linears(header: Header, width: int, patch: int) -> tuple[Linear, ...]:
    """The kernels [E, 3, p, p] as matrices, one for each frame that the file has."""
    if header.count(FRAMES, 1) != 1:
        raise Unsupported("a kernel of patches over several frames is not supported yet")
    bias = header.optional_vector("v.patch_embd.bias", width)
    names = ["v.patch_embd.weight"]
    names += [name for name in ("v.patch_embd.weight.1",) if header.has_tensor(name)]
    for name in names:
        header.array(name, width, CHANNELS, patch, patch)
    columns = CHANNELS * patch * patch
    return tuple(
        Linear(weight=name, rows=width, columns=columns, bias="" if place else bias)
        for place, name in enumerate(names)
    )


def places(header: Header, width: int, rows: int, *, is_interpolated: bool = False) -> Places:
    header.array("v.position_embd.weight", rows, width)
    return Places(table="v.position_embd.weight", rows=rows, is_interpolated=is_interpolated)


def class_token(header: Header, width: int) -> str:
    """Optional; a vector of `width` numbers, whatever sides of 1 it has."""
    name = "v.class_embd"
    if not header.has_tensor(name):
        return ""
    shape = header.tensor(name).shape
    if shape[-1] != width or header.tensor(name).elements != width:
        raise MalformedFile(f"tensor {name!r} has shape {list(shape)}, not [{width}]")
    return name


def block(
    header: Header,
    index: int,
    width: int,
    activation: Activation,
    *,
    is_centered: bool = True,
    is_windowed: bool = False,
) -> VisionBlock:
    """Block `index` of a tower `width` wide."""
    stem = f"v.blk.{index}"
    return VisionBlock(
        attention_norm=norm(header, f"{stem}.ln1", width, is_centered=is_centered),
        attention=_attention(header, stem, width, is_centered, is_windowed),
        feed_forward_norm=norm(header, f"{stem}.ln2", width, is_centered=is_centered),
        feed_forward=_perceptron(header, stem, width, activation),
        attention_scale=header.optional_vector(f"{stem}.ls1.weight", width),
        feed_forward_scale=header.optional_vector(f"{stem}.ls2.weight", width),
    )


def _attention(
    header: Header, stem: str, width: int, is_centered: bool, is_windowed: bool
) -> VisionAttention:
    heads = bounded(header, "vision.attention.head_count", MAX_HEADS)
    if width % heads:
        raise MalformedFile(f"clip.vision.attention.head_count {heads} does not divide {width}")

    def matrix(name: str, rows: int = width) -> Linear:
        return header.linear(f"{stem}.{name}", rows=rows, columns=width)

    def head_norm(name: str) -> Norm | None:
        found = f"{stem}.{name}.weight"
        if not header.has_tensor(found):
            return None
        weight = header.vector(found, width, width // heads)
        return Norm(weight=weight, is_centered=is_centered)

    norms = [head_norm("attn_q_norm"), head_norm("attn_k_norm")]
    lengths = {header.tensor(each.weight).elements for each in norms if each}
    if len(lengths) > 1:
        raise MalformedFile(f"{stem}: norms of queries and keys of different lengths")
    is_packed = header.has_tensor(f"{stem}.attn_qkv.weight")
    return VisionAttention(
        heads=heads,
        head_size=width // heads,
        packed=matrix("attn_qkv", 3 * width) if is_packed else None,
        query=None if is_packed else matrix("attn_q"),
        key=None if is_packed else matrix("attn_k"),
        value=None if is_packed else matrix("attn_v"),
        output=matrix("attn_out"),
        query_norm=norms[0],
        key_norm=norms[1],
        has_norm_per_head=lengths == {width // heads} and heads > 1,
        is_windowed=is_windowed,
    )


def _perceptron(header: Header, stem: str, width: int, activation: Activation) -> Perceptron:
    """Old files call up what goes down: the shapes tell."""
    up, down = f"{stem}.ffn_up", f"{stem}.ffn_down"
    if header.tensor(f"{up}.weight").shape[-1] != width:
        up, down = down, up
    first = header.linear(up, columns=width)
    is_gated = header.has_tensor(f"{stem}.ffn_gate.weight")
    gate = f"{stem}.ffn_gate"
    return Perceptron(
        activation=activation,
        up=first,
        down=header.linear(down, rows=width, columns=first.rows),
        gate=header.linear(gate, rows=first.rows, columns=width) if is_gated else None,
    )


def grid_of(header: Header) -> tuple[int, int, int]:
    """(side of a tile, side of a patch, patches in a row): what is left over at the end is not looked at."""
    size = bounded(header, "vision.image_size", MAX_SIDE)
    patch = bounded(header, "vision.patch_size", MAX_PATCH)
    if patch > size:
        raise MalformedFile(f"clip.vision.patch_size {patch} is above image_size {size}")
    return size, patch, size // patch


def merge_of(header: Header, default: int, grid: int) -> int:
    """`projector.scale_factor`: so many patches in a row become one position."""
    merge = bounded(header, "vision.projector.scale_factor", MAX_MERGE, default)
    if grid % merge:
        raise Unsupported(f"a grid of {grid} patches in a row that does not divide by {merge}")
    return merge
