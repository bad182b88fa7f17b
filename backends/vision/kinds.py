"""Which kinds of vision towers there are: one file each, listed here and nowhere else."""

from __future__ import annotations

from backends.types import EngineError
from backends.vision.pixtral import Pixtral
from backends.vision.plan import ImageKind
from backends.vision.qwen_vl import QwenVl

_KINDS: dict[str, ImageKind] = {
    "pixtral": Pixtral(),
    "qwen2vl_merger": QwenVl(),
    "qwen2.5vl_merger": QwenVl(),
    "qwen3vl_merger": QwenVl(),
}


def kind_of(projector: str) -> ImageKind:
    """By `ImageForm.projector`. Raises EngineError("load")."""
    if projector not in _KINDS:
        raise EngineError(
            "load", f"images for a projector of the type {projector!r} are unknown here"
        )
    return _KINDS[projector]
