"""Which kinds of projectors there are: one file each, listed here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

from converters.architectures.header import Header
from converters.errors import Unsupported
from converters.gguf import GgufFile
from converters.projectors import gemma3, idefics3, internvl, mlp, pixtral, qwen_vl
from converters.projectors.form import has_tower, projector_form, projector_type
from converters.projectors.tower import VisionShape

PROJECTORS: dict[str, Callable[[Header], VisionShape]] = {
    "gemma3": gemma3.describe,
    "idefics3": idefics3.describe,
    "internvl": internvl.describe,
    "mlp": mlp.describe,
    "pixtral": pixtral.describe,
    "qwen2vl_merger": qwen_vl.describe_2,
    "qwen2.5vl_merger": qwen_vl.describe_2_5,
    "qwen3vl_merger": qwen_vl.describe_3,
}


def describe_tower(file: GgufFile) -> VisionShape:
    """The tower in the file. Raises Unsupported by name, MalformedFile for what does not add up."""
    if not has_tower(file):
        raise Unsupported("the file has no vision encoder")
    file = projector_form(file)
    if file.architecture != "clip":
        raise Unsupported(f"the vision tower inside {file.architecture!r} is not supported yet")
    kind = projector_type(file)
    if kind not in PROJECTORS:
        raise Unsupported(f"the projector type {kind[:80]!r} is not supported yet")
    return PROJECTORS[kind](Header(file))
