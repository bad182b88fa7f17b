"""One conversion of a vision tower, from an open GGUF to a vision artifact in its place.

As `converters.convert`: nothing appears under the final name before all of it is on the disk.
"""

from __future__ import annotations

import pathlib
from typing import BinaryIO

import msgspec

from converters.gguf import read_header
from converters.parallel import RunInOrder, one_by_one
from converters.progress import Progress
from converters.vision_artifact import read_vision
from converters.vision_plan import plan_vision


class VisionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`source` is the source id that the artifact will carry; `final` the folder to make."""

    source: str
    target: str
    final: pathlib.Path


def convert_vision(
    file: BinaryIO, request: VisionRequest, progress: Progress, run: RunInOrder = one_by_one
) -> int:
    """Bytes of the artifact; one that is there already is left as it is. Raises ConversionError."""
    if request.final.exists():
        return read_vision(request.final).file_bytes
    progress.start("plan")
    plan_vision(read_header(file), request.target)
    raise RuntimeError("no kind of projector is described yet")
