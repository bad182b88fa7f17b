"""Inspections: what a GGUF says of itself, made once per blob by a child, kept in `<home>/inspections/`.

Nothing here reads a GGUF: child processes do, one at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import secrets
import shutil
from collections.abc import Callable, Sequence

import msgspec

from converters.inspection import Inspection, arrays_path, inspection_path, read_inspection
from daemon.errors import Busy, DaemonError, Invalid, LoadFailed, NotFound, NotYet
from daemon.models.converter_process import run_converter

_REMEMBERED_INSPECTIONS = 64


class Inspections:
    """`blob_path` gives the file of a hex digest; `is_busy` tells whether requests are running."""

    def __init__(
        self,
        *,
        home: pathlib.Path,
        blob_path: Callable[[str], pathlib.Path],
        is_busy: Callable[[], bool],
        command: Sequence[str],
    ) -> None:
        self._home = home
        self._blob_path = blob_path
        self._is_busy = is_busy
        self._command = tuple(command)
        self._one_inspector = asyncio.Lock()
        self._inspecting: dict[str, asyncio.Task[Inspection]] = {}
        self._inspections: dict[str, Inspection] = {}
        self._refused: dict[str, DaemonError] = {}

    def tasks(self) -> list[asyncio.Task[Inspection]]:
        """What is being made now."""
        return list(self._inspecting.values())

    def known(self, digest: str) -> Inspection | None:
        """The inspection of a blob (hex) if it was ever made; starts nothing."""
        inspection = self._inspections.get(digest)
        if inspection is None:
            inspection = read_inspection(inspection_path(self._home, digest))
            if inspection is not None:
                self._remember(inspection)
        return inspection

    async def inspection(self, digest: str) -> Inspection:
        """The inspection of a blob (hex), made now if need be. Raises Invalid, NotYet, LoadFailed.

        A file that was refused once is not looked at again while the daemon runs.
        """
        inspection = self.known(digest)
        if inspection is not None:
            return inspection
        if digest in self._refused:
            error = self._refused[digest]
            raise type(error)(error.message)
        task = self._inspecting.get(digest)
        if task is None:
            task = asyncio.create_task(self._inspect(digest))
            self._inspecting[digest] = task
            task.add_done_callback(lambda _: self._inspecting.pop(digest, None))
            task.add_done_callback(_take_exception)
        await asyncio.wait({task})
        if task.cancelled():
            raise Busy("the daemon is stopping")
        error = task.exception()
        if isinstance(error, DaemonError):
            raise type(error)(error.message)
        return task.result()

    async def _inspect(self, digest: str) -> Inspection:
        try:
            folder = inspection_path(self._home, digest).parent
            inspection = await self._run_inspector(self._blob_path(digest), digest, folder)
        except (Invalid, NotYet) as error:
            self._refused[digest] = error
            raise
        self._remember(inspection)
        return inspection

    async def preview(self, path: pathlib.Path) -> Inspection:
        """A look at a file that is in no store yet; its digest is not known, nothing is kept."""
        home = self._home / f".preview-{secrets.token_hex(8)}"
        digest = "0" * 64
        try:
            folder = inspection_path(home, digest).parent
            return await self._run_inspector(path, digest, folder)
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, home, ignore_errors=True))

    async def _run_inspector(
        self, path: pathlib.Path, digest: str, folder: pathlib.Path
    ) -> Inspection:
        if not await asyncio.to_thread(path.is_file):
            raise NotFound(f"blob sha256:{digest} not found")
        arguments = ["inspect", "--input", str(path), "--digest", digest]
        await self.run([*arguments, "--output", str(folder)])
        inspection = await asyncio.to_thread(read_inspection, folder / f"{digest}.json")
        if inspection is None:
            raise LoadFailed("the inspector left no inspection that this build can read")
        return inspection

    async def run(self, arguments: Sequence[str]) -> None:
        """A child that only looks at files, one at a time. Raises what it refuses them for."""
        command = [*self._command, *arguments, "--watch-stdin"]
        async with self._one_inspector:
            await run_converter(command, lambda _: None, self._is_busy)

    def _remember(self, inspection: Inspection) -> None:
        self._inspections[inspection.digest] = inspection
        while len(self._inspections) > _REMEMBERED_INSPECTIONS:
            del self._inspections[next(iter(self._inspections))]

    async def arrays(self, digest: str) -> dict[str, msgspec.Raw]:
        """The long metadata arrays of an inspected blob, as JSON; empty when there are none."""
        path = arrays_path(self._home, digest)
        return await asyncio.to_thread(_read_arrays, path)


def _read_arrays(path: pathlib.Path) -> dict[str, msgspec.Raw]:
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
    return {}


def _take_exception(task: asyncio.Task[Inspection]) -> None:
    """An inspection that nobody waits for any more may fail in silence."""
    if not task.cancelled():
        task.exception()
