"""What mlx-lm's modules with Mamba 2 share: one shape for all its blocks."""

from __future__ import annotations

from converters.architectures.mixers import Mamba2
from converters.architectures.model import ModelShape
from converters.errors import Unsupported

# Some modules cut the time step off at 100 unless they are told otherwise; files mean no limit.
NO_LIMIT = 3e38
# What its kernel for Metal divides a state into.
STATE_STEP = 32


def first_mamba2(model: ModelShape) -> Mamba2:
    """Raises Unsupported where the blocks have several shapes."""
    mixers = [block.mixer for block in model.blocks if isinstance(block.mixer, Mamba2)]
    shapes = {(each.heads, each.size, each.groups, each.state, each.length) for each in mixers}
    if len(shapes) != 1:
        raise Unsupported(f"the Mamba 2 of this {model.architecture} has {len(shapes)} shapes")
    if mixers[0].state % STATE_STEP:
        raise Unsupported(
            f"mlx-lm's kernel has states of {STATE_STEP}, 2 · {STATE_STEP} …, not {mixers[0].state}"
        )
    return mixers[0]
