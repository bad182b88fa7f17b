"""Whose store is this? A small file in its root says that Hearth made or adopted it.

A store found through `OLLAMA_MODELS`, or one with content and no marker, belongs to somebody else:
it is served, never written. An adopted one is written, but only `rm` deletes from it.
"""

from __future__ import annotations

import enum
import pathlib

from daemon.models.durable import make_folder, write_durably

MARKER_FILE = ".hearth-store"


class Marker(enum.Enum):
    """The marker file's text."""

    MADE = "made by hearth\n"
    ADOPTED = "adopted by hearth\n"


def read_marker(root: pathlib.Path) -> Marker | None:
    try:
        return Marker((root / MARKER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_marker(root: pathlib.Path, marker: Marker) -> None:
    """Makes `root` a store of ours, with the folders a store has."""
    make_folder(root)
    write_durably(root / MARKER_FILE, marker.value.encode(), temporary_folder=root)
    _make_folders(root)


def _make_folders(root: pathlib.Path) -> None:
    make_folder(root / "blobs")
    make_folder(root / "manifests")


def claim(root: pathlib.Path, *, is_foreign: bool) -> Marker | None:
    """The store's marker; written first where nothing is there yet. None: read-only.

    `is_foreign`: the path came from another server's settings, so not even an empty folder is ours.
    """
    marker = read_marker(root)
    if marker is None and not is_foreign and _is_unused(root):
        marker = Marker.MADE
        write_marker(root, marker)
    elif marker is not None:
        _make_folders(root)
    return marker


def _is_unused(root: pathlib.Path) -> bool:
    """Nothing there, except what an interrupted first start of ours left."""
    return not root.exists() or all(path.name.startswith(".tmp-") for path in root.iterdir())
