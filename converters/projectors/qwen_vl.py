"""`qwen2vl_merger`, `qwen2.5vl_merger` and `qwen3vl_merger`: four patches become one position.

Sources: llama.cpp's `models/qwen2vl.cpp`, `models/qwen3vl.cpp` and `clip.cpp`. A still image is a film of
two equal frames, so both kernels of the patches read the same one. Version 2.5 norms by the root mean
square and looks through windows in all blocks but each `n_wa_pattern`-th; version 3 has a table of places, and
blocks whose streams are put behind the positions' numbers (DeepStack), for the text model's first blocks.
"""

from __future__ import annotations

import math

from msgspec.structs import replace

from converters.architectures.header import Header
from converters.errors import MalformedFile
from converters.projectors import vit
from converters.projectors.sized import image_form, sized_tower
from converters.projectors.tower import Bend, Group, Step, StepNorm, Tap, VisionShape
from converters.vision_artifact import ImageForm

LEAST_POSITIONS, MOST_POSITIONS = 8, 4096
WINDOW = 112


def describe_2(header: Header) -> VisionShape:
    period = header.count("vision.n_wa_pattern", 0)
    return _windowed(header, "qwen2vl_merger", period, is_centered=True)


def describe_2_5(header: Header) -> VisionShape:
    period = header.count("vision.n_wa_pattern")
    return _windowed(header, "qwen2.5vl_merger", period, is_centered=False)


def describe_3(header: Header) -> VisionShape:
    shape = header.array("v.position_embd.weight", 0, vit.width_of(header))
    side = math.isqrt(shape[0])
    if not side or side**2 != shape[0]:
        raise MalformedFile(f"tensor 'v.position_embd.weight': {shape[0]} places are no square")
    form = replace(_form(header, "qwen3vl_merger"), grid_size=side)
    steps, width = _merger(header, form)
    taps = tuple(
        Tap(block=index, steps=_tapped(header, form, index, width))
        for index in range(vit.block_count(header))
        if header.has_tensor(f"v.deepstack.{index}.fc1.weight")
    )
    return sized_tower(
        header, form, width, steps, rotation="halves", is_centered=True, has_places=True, taps=taps
    )


def _windowed(header: Header, projector: str, period: int, *, is_centered: bool) -> VisionShape:
    """`period` 0: every block sees the whole image."""
    form = _form(header, projector)
    if period > 1:
        window = header.count("vision.window_size", WINDOW)
        if not form.patch_size * form.merge <= window <= vit.MAX_SIDE:
            raise MalformedFile(f"clip.vision.window_size is {window}")
        form = replace(form, window_size=window)
    steps, width = _merger(header, form)
    return sized_tower(
        header,
        form,
        width,
        steps,
        rotation="halves",
        is_centered=is_centered,
        full_block_period=max(1, period),
    )


def _form(header: Header, projector: str) -> ImageForm:
    return image_form(header, projector, 2, least=LEAST_POSITIONS, most=MOST_POSITIONS)


def _merger(header: Header, form: ImageForm) -> tuple[tuple[Step, ...], int]:
    """What follows the last norm, and the width of the text model."""
    columns = form.merge**2 * vit.width_of(header)
    first = header.linear("mm.0", columns=columns)
    second = header.linear("mm.2", columns=first.rows)
    return (Group(form.merge**2), first, Bend("gelu_tanh"), second), second.rows


def _tapped(header: Header, form: ImageForm, index: int, width: int) -> tuple[Step, ...]:
    stem, columns = f"v.deepstack.{index}", form.merge**2 * vit.width_of(header)
    norm = vit.norm(header, f"{stem}.norm", columns)
    first = header.linear(f"{stem}.fc1", columns=columns)
    second = header.linear(f"{stem}.fc2", columns=first.rows, rows=width)
    normed = StepNorm(norm=norm, epsilon=vit.epsilon_of(header))
    return (Group(form.merge**2), normed, first, Bend("gelu_tanh"), second)
