"""Which kinds of vision towers there are: one file each, listed here and nowhere else."""

from __future__ import annotations

from backends.types import EngineError
from backends.vision.gemma3 import Gemma3
from backends.vision.idefics3 import Idefics3
from backends.vision.internvl import InternVl
from backends.vision.mlp import Mlp
from backends.vision.pixtral import Pixtral
from backends.vision.plan import ImageKind
from backends.vision.qwen_vl import QwenVl

_KINDS: dict[str, ImageKind] = {
    "pixtral": Pixtral(),
    "qwen2vl_merger": QwenVl(),
    "qwen2.5vl_merger": QwenVl(),
    "qwen3vl_merger": QwenVl(),
    "gemma3": Gemma3(),
    "idefics3": Idefics3(),
    "internvl": InternVl(),
    "mlp": Mlp(),
}


def kind_of(projector: str) -> ImageKind:
    """By `ImageForm.projector`. Raises EngineError("load")."""
    if projector not in _KINDS:
        raise EngineError(
            "load", f"images for a projector of the type {projector!r} are unknown here"
        )
    return _KINDS[projector]
