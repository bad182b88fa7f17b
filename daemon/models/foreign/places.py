"""Where other programs keep models, and what kind of folder one is."""

from __future__ import annotations

import enum
import pathlib

import msgspec

_USUAL = (
    "~/.ollama/models",
    "/usr/share/ollama/.ollama/models",
    "~/.lmstudio/models",
    "~/.cache/lm-studio/models",
    "~/.cache/huggingface/hub",
)


class Kind(enum.Enum):
    """A store has manifests and blobs; a cache belongs to a program that alone knows its links."""

    STORE = "store"
    CACHE = "huggingface"
    FOLDER = "folder"


class Place(msgspec.Struct, frozen=True):
    root: pathlib.Path
    kind: Kind


def kind_of(root: pathlib.Path) -> Kind:
    if (root / "manifests").is_dir() and (root / "blobs").is_dir():
        return Kind.STORE
    if any(root.glob("models--*--*")):
        return Kind.CACHE
    return Kind.FOLDER


def usual_folders() -> list[pathlib.Path]:
    """The places where programs of this field put their models, there or not."""
    return [pathlib.Path(text).expanduser() for text in _USUAL]


def plan_places(
    named: tuple[pathlib.Path, ...], *, is_auto: bool, own: pathlib.Path
) -> list[Place]:
    """The places that are there now, each once, our own store never. Touches the disk."""
    found: dict[pathlib.Path, Place] = {}
    for folder in [*named, *(usual_folders() if is_auto else [])]:
        try:
            root = folder.resolve()
            if root == own.resolve() or root in found or not root.is_dir():
                continue
            if (root / "models" / "manifests").is_dir():
                root = root / "models"
            found[root] = Place(root, kind_of(root))
        except OSError:
            continue
    return list(found.values())
