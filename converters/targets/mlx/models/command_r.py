"""`command-r`, `cohere2` → mlx-lm's `cohere`, `cohere2`: parallel branches, always a tied head."""

from __future__ import annotations

from converters.architectures.model import ModelShape
from converters.errors import Unsupported
from converters.targets.mlx.models.family import Config, Family, attention_of

_SHAPE = frozenset({"layer norm", "parallel branches", "tied output"})


def _config(model: ModelShape) -> Config:
    return {"layer_norm_eps": model.epsilon, "logit_scale": model.logit_scale}


FAMILY = Family(
    model_type="cohere",
    keeps_pairs=True,
    config=_config,
    carries=_SHAPE | {"logit scale"},
    needs=_SHAPE,
)


def _windowed(model: ModelShape) -> Config:
    """The module finds the blocks that see everything, and do not rotate, by a period."""
    attentions = [attention_of(block) for block in model.blocks]
    window, period = window_period(model)
    if any(bool(each.rope) != bool(each.window) for each in attentions):
        raise Unsupported("mlx-lm's cohere2 model rotates in all windows and only there")
    return _config(model) | {"sliding_window": window, "sliding_window_pattern": period}


def window_period(model: ModelShape) -> tuple[int, int]:
    """(W, p): the last of every p blocks sees everything, the others the last W ids.

    Raises Unsupported where the blocks follow no such rule. Shared with `gemma3`.
    """
    windows = [attention_of(block).window for block in model.blocks]
    period = windows.index(0) + 1 if 0 in windows else len(windows) + 1
    width = max(windows)
    if windows != [0 if (at + 1) % period == 0 else width for at in range(len(windows))]:
        raise Unsupported(f"the sliding windows of this {model.architecture} follow no period")
    return width, period


WINDOWED = Family(
    model_type="cohere2",
    keeps_pairs=True,
    config=_windowed,
    carries=_SHAPE | {"logit scale", "sliding window", "block without rotation"},
    needs=_SHAPE,
)
