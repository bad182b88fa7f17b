"""A folder of safetensors as a client sends it: which files belong to it, by relative name."""

from __future__ import annotations

import pathlib

from daemon.errors import Invalid

MAX_FILES = 1024
_TEXTS = ("*.json", "*/*.json", "chat_template.jinja", "tokenizer.model")
_WEIGHTS = ("model*.safetensors", "*.safetensors")
_OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def folder_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Relative name → path of weights, configuration and tokenizer.

    Raises Invalid where there are no safetensors, for too many files and for links that lead out.
    """
    none: list[pathlib.Path] = []
    weights = next((found for pattern in _WEIGHTS if (found := sorted(folder.glob(pattern)))), none)
    if not weights:
        others = [path.name for pattern in _OTHER_WEIGHTS for path in sorted(folder.glob(pattern))]
        found = f" ({others[0]} holds pickled weights, which are not imported)" if others else ""
        raise Invalid(f"{folder.name} has no safetensors files{found}")
    paths = [*weights, *(path for pattern in _TEXTS for path in sorted(folder.glob(pattern)))]
    if len(paths) > MAX_FILES:
        raise Invalid(f"{folder.name} has {len(paths)} files, over {MAX_FILES}")
    root = _root(folder)
    for path in paths:
        if not path.resolve().is_relative_to(root):
            raise Invalid(f"{path.name} is a link that leads out of the folder")
    return {path.relative_to(folder).as_posix(): path for path in paths if path.is_file()}


def _root(folder: pathlib.Path) -> pathlib.Path:
    """The cache of Hugging Face's own programs links from a model's snapshots to its blobs."""
    resolved = folder.resolve()
    is_cached = resolved.parent.name == "snapshots" and resolved.parents[1].name.startswith(
        "models--"
    )
    return resolved.parents[1] if is_cached else resolved
