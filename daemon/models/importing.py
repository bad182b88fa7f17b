"""Several files become one GGUF on the shelf: by a converter child, then as a blob of ours.

The GGUF is made beside the artifacts, taken into the store by a link where that is possible, and the
folder it was made in is removed. Whoever leaves early takes everything back.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import pathlib
from collections.abc import AsyncGenerator, Callable, Sequence

import msgspec

from converters.artifact import MADE_GGUF, MADE_NOTES, ArtifactError
from daemon.errors import LoadFailed, NotYet
from daemon.models.converter_process import discard_folder
from daemon.models.create_request import CreateStatus
from daemon.models.jobs import ConversionProgress, Conversions, Wanted
from daemon.models.store import Store
from daemon.models.taking_in import take_in

_FOLDER = "gguf-from-files"
# What clients of the field's other servers know, and expect to be a 500.
_UNKNOWN_ARCHITECTURE = "unsupported architecture"


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Safetensors: a `folder` of this machine, or `files` by relative name; `name` is the model's.

    Or `parts`, in order, of a split GGUF. `optimum`: the environment in which a folder without a
    recipe is exported to ONNX.
    """

    name: str = ""
    folder: pathlib.Path | None = None
    files: tuple[tuple[str, pathlib.Path], ...] = ()
    parts: tuple[pathlib.Path, ...] = ()
    optimum: pathlib.Path | None = None

    def arguments(self) -> tuple[str, ...]:
        if self.parts:
            others = (word for part in self.parts[1:] for word in ("--part", str(part)))
            return ("merge", "--input", str(self.parts[0]), *others)
        given = ["import", "--name", self.name]
        if self.folder is not None:
            given += ["--input", str(self.folder)]
        for name, path in self.files:
            given += ["--file", name, str(path)]
        given += ["--optimum", str(self.optimum)] if self.optimum else []
        return tuple(given)

    def key(self) -> str:
        """The same for the same files, unchanged; two who import them share the work.

        Raises OSError where this process may not read them.
        """
        given = [*self.parts, *(path for _, path in self.files)]
        paths = sorted(self.folder.iterdir()) if self.folder else given
        for path in paths:
            if not os.access(path, os.R_OK):
                raise PermissionError(f"{path.name} cannot be read")
        seen = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        return hashlib.sha256(msgspec.json.encode([self.arguments(), seen])).hexdigest()


async def import_files(
    store: Store, conversions: Conversions, source: Source, tell_digest: Callable[[str], object]
) -> AsyncGenerator[CreateStatus]:
    """Statuses of making the GGUF and taking it in; its hex digest is told before the stream ends.

    Raises Invalid, NotYet, NoSpace, LoadFailed, Busy.
    """
    key = await asyncio.to_thread(source.key)
    folder = conversions.made_folder(key, _FOLDER)
    wanted = Wanted(source=key, folder=folder, arguments=source.arguments(), read=require_gguf)
    try:
        async with contextlib.aclosing(conversions.ensure(wanted)) as steps:
            async for step in steps:
                yield _status(step, source)
        for note in await asyncio.to_thread(notes, folder):
            yield CreateStatus(status=f"note: {note}")
        async with contextlib.aclosing(take_in(store, folder / MADE_GGUF, tell_digest)) as statuses:
            async for status in statuses:
                yield msgspec.structs.replace(status, status="verifying conversion")
    except NotYet as error:
        if error.message.startswith(_UNKNOWN_ARCHITECTURE):
            raise LoadFailed(error.message) from error
        raise
    finally:
        await asyncio.shield(asyncio.to_thread(_remove, folder))


def _status(step: ConversionProgress, source: Source) -> CreateStatus:
    words = {
        "queued": "waiting for another conversion",
        "export": "exporting to ONNX",
        "verify": "verifying conversion",
    }
    status = words.get(step.phase, "merging parts" if source.parts else "converting model")
    return CreateStatus(status=status, total=step.total, completed=step.done)


def require_gguf(folder: pathlib.Path) -> None:
    """Raises ArtifactError unless a converter has made its GGUF there."""
    if not (folder / MADE_GGUF).is_file():
        raise ArtifactError(f"{folder.name}: no {MADE_GGUF}")


def notes(folder: pathlib.Path) -> Sequence[str]:
    """What the converter that made a GGUF there has to say. Blocking."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode((folder / MADE_NOTES).read_bytes(), type=list[str])
    return ()


def _remove(folder: pathlib.Path) -> None:
    """Its links in the store remain."""
    if folder.exists():
        discard_folder(folder)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()
