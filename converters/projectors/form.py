"""Files that carry a vision tower, told in the words of llama.cpp's projector files."""

from __future__ import annotations

from converters.gguf import GgufFile, text_value

_TOWER = "v."
_TYPE_KEYS = ("clip.vision.projector_type", "clip.projector_type")


def has_tower(file: GgufFile) -> bool:
    """Whether there is a vision tower: in a projector file, or inside a model's own."""
    is_projector = file.architecture == "clip"
    if is_projector and file.metadata.get("clip.has_vision_encoder") is not None:
        return bool(file.metadata["clip.has_vision_encoder"])
    return any(tensor.name.startswith(_TOWER) for tensor in file.tensors)


def projector_form(file: GgufFile) -> GgufFile:
    """The tower of a file with `clip.` keys and those names; a projector file comes through untouched."""
    return file


def projector_type(file: GgufFile) -> str:
    """`clip.projector_type` of a file in that form; "" where it says nothing. Raises MalformedFile."""
    for key in _TYPE_KEYS:
        if key in file.metadata:
            return text_value(file.metadata, key)
    return ""
