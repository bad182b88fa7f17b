"""An adapter of an artifact: a second graph on the same weights, and its own small arrays, mapped."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from backends.types import EngineError
from converters.artifact import (
    ADAPTER_WEIGHTS_FILE,
    GRAPH_FILE,
    AdapterArtifact,
    Artifact,
    ArtifactError,
    StoredArray,
    read_adapter,
)

MAX_GRAPH_BYTES = 1 << 30


class LoadedAdapter(msgspec.Struct, frozen=True):
    """`graph` is a serialised model; `arrays` its initializers that are not the base's."""

    graph: bytes
    arrays: dict[str, NDArray[np.floating]]


def load_adapter(
    folders: Sequence[str], artifact: Artifact, base: pathlib.Path
) -> LoadedAdapter | None:
    """None where no folder is given. Raises EngineError for more than one and for another base's.

    `base` is the artifact's folder.
    """
    if not folders:
        return None
    if len(folders) > 1:
        raise EngineError("unsupported", "only one adapter is supported for one model")
    folder = pathlib.Path(folders[0])
    try:
        adapter = read_adapter(folder, base)
        _check_base(adapter, artifact, folder)
        if (folder / GRAPH_FILE).stat().st_size > MAX_GRAPH_BYTES:
            raise EngineError("load", f"{folder.name}: the graph is too large")
        graph = (folder / GRAPH_FILE).read_bytes()
        arrays = _arrays(adapter, folder / ADAPTER_WEIGHTS_FILE)
    except (ArtifactError, OSError) as error:
        raise EngineError("load", f"the adapter cannot be read: {error}") from error
    return LoadedAdapter(graph, arrays)


def _check_base(adapter: AdapterArtifact, artifact: Artifact, folder: pathlib.Path) -> None:
    found = adapter.base, adapter.variant
    if found != (artifact.source, artifact.variant):
        raise EngineError("load", f"{folder.name}: the adapter is for another model's weights")


def _arrays(adapter: AdapterArtifact, path: pathlib.Path) -> dict[str, NDArray[np.floating]]:
    mapped = np.memmap(path, np.uint8, "r").view(np.ndarray)
    return {name: _array(mapped, stored, path) for name, stored in adapter.arrays.items()}


def _array(
    mapped: NDArray[np.uint8], stored: StoredArray, path: pathlib.Path
) -> NDArray[np.floating]:
    dtype = np.dtype("<f2" if stored.is_half else "<f4")
    end = stored.offset + math.prod(stored.shape) * dtype.itemsize
    if min(stored.offset, *stored.shape) < 0 or end > mapped.size:
        raise EngineError("load", f"{path.name} is shorter than its adapter says")
    return mapped[stored.offset : end].view(dtype).reshape(stored.shape)
