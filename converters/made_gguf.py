"""A GGUF made of other files, in a folder of its own: written, read back, synced, in its place."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import msgspec

from converters.artifact import MADE_GGUF, MADE_NOTES
from converters.gguf import TensorInfo, read_header
from converters.gguf_writer import GgufPlan, Slices, write_file
from converters.progress import Progress
from converters.staging import check_space, staged, sync_and_publish


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """`digest` is the file's sha256 in hexadecimal; `notes` say what was assumed or left out."""

    digest: str
    file_bytes: int
    notes: tuple[str, ...] = ()


def make_gguf(
    final: pathlib.Path,
    planned: GgufPlan,
    given: Callable[[TensorInfo], Slices],
    progress: Progress,
    notes: tuple[str, ...] = (),
) -> Made:
    """The folder `final` with the GGUF and its notes; whole or not at all. Raises NoSpace."""
    check_space(final.parent, planned.total_bytes)
    with staged(final) as staging:
        progress.start("write", planned.total_bytes)
        path = staging / MADE_GGUF
        with path.open("wb") as file:
            digest = write_file(file, planned, given)
        progress.start("verify", planned.total_bytes)
        verify_gguf(path, planned)
        (staging / MADE_NOTES).write_bytes(msgspec.json.encode(notes))
        sync_and_publish(staging, final, planned.total_bytes, progress)
    return Made(digest=digest, file_bytes=planned.total_bytes, notes=notes)


def verify_gguf(path: pathlib.Path, planned: GgufPlan) -> None:
    """What is on the disk reads back as what was planned. A failure here is a defect of ours."""
    with path.open("rb") as file:
        found = read_header(file)
    if found.tensors != planned.tensors or found.size != planned.total_bytes:
        raise RuntimeError("the GGUF does not read back as it was planned")
