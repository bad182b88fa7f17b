"""Files that carry a vision tower, told in the words of llama.cpp's projector files."""

from __future__ import annotations

from msgspec.structs import replace

from converters.gguf import GgufFile, text_value
from converters.projectors.library import inner_tower

_TOWER = "v."
_TYPE_KEYS = ("clip.vision.projector_type", "clip.projector_type")


def has_tower(file: GgufFile) -> bool:
    """Whether there is a vision tower: in a projector file, or inside a model's own."""
    is_projector = file.architecture == "clip"
    if is_projector and file.metadata.get("clip.has_vision_encoder") is not None:
        return bool(file.metadata["clip.has_vision_encoder"])
    return any(tensor.name.startswith(_TOWER) for tensor in file.tensors)


def projector_form(file: GgufFile) -> GgufFile:
    """The tower of a file with `clip.` keys and those names; a projector file comes through untouched.

    One of LLaVA 1.5 may be older than the key of its type. Raises MalformedFile and Unsupported.
    """
    if file.architecture != "clip":
        return inner_tower(file) or file
    if any(key in file.metadata for key in _TYPE_KEYS) or not _has_matrices(file):
        return file
    return replace(file, metadata=file.metadata | {"clip.projector_type": "mlp"})


def _has_matrices(file: GgufFile) -> bool:
    return {"mm.0.weight", "mm.2.weight"} <= {tensor.name for tensor in file.tensors}


def projector_type(file: GgufFile) -> str:
    """`clip.projector_type` of a file in that form; "" where it says nothing. Raises MalformedFile."""
    for key in _TYPE_KEYS:
        if key in file.metadata:
            return text_value(file.metadata, key)
    return ""
