"""The JSON that says what a converted folder holds, counted among its own bytes."""

from __future__ import annotations

import pathlib

import msgspec

from converters.artifact import AdapterArtifact, Artifact
from converters.vision_artifact import VisionArtifact


def write_description(
    described: Artifact | AdapterArtifact | VisionArtifact, name: str, staging: pathlib.Path
) -> int:
    """Writes the file `name`, which counts itself in `file_bytes`; gives that sum."""
    others = sum(path.stat().st_size for path in staging.iterdir())
    data, total = b"", -1
    while total != others + len(data):
        total = others + len(data)
        data = msgspec.json.encode(msgspec.structs.replace(described, file_bytes=total))
    (staging / name).write_bytes(data)
    return total
