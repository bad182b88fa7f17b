"""Artifacts in memory, for models whose artifact does not fit on the disk.

Each belongs to one worker: planned where the disk turns out to be too small, converted into a
folder of a filesystem in memory when the load begins, removed when the worker is gone. The folder of
one daemon carries its lock, so that the next one removes what a killed one left. Owned by the event
loop; removing is done in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import pathlib
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from typing import Protocol

import msgspec

from backends.select import Choice
from converters.artifact import Artifact, ArtifactError, read_artifact
from converters.inspection import Inspection, MemoryEstimate
from daemon.errors import Busy, DaemonError, LoadFailed, NoSpace
from daemon.residency.memory import free_bytes
from daemon.residency.placement import InMemory, Placement, placement_of, seeing

log = logging.getLogger(__name__)

# Left free in the filesystem, as the converter demands of every one.
SPARE_BYTES = 64 << 20
_NOWHERE = "this system has no filesystem in memory to convert it into"


class Conversions(Protocol):
    """The part of `daemon.models.jobs` that is used here; `artifacts` is the root to convert into."""

    def ensure_artifact(
        self, source: str, target: str, *, artifacts: pathlib.Path | None = None
    ) -> AsyncGenerator[object]: ...

    def artifact_folder(
        self, source: str, target: str, *, artifacts: pathlib.Path | None = None
    ) -> pathlib.Path: ...

    def ensure_vision(
        self, source: str, target: str, *, artifacts: pathlib.Path | None = None
    ) -> AsyncGenerator[object]: ...

    def vision_folder(
        self, source: str, target: str, *, artifacts: pathlib.Path | None = None
    ) -> pathlib.Path: ...


class MemoryArtifacts:
    """`folder` lies in a filesystem in memory; None: there is none here."""

    def __init__(
        self,
        folder: pathlib.Path | None,
        conversions: Conversions,
        *,
        measure_free: Callable[[int], int] = free_bytes,
    ) -> None:
        self._folder = folder
        self._conversions = conversions
        self._measure_free = measure_free
        self._root: pathlib.Path | None = None
        self._lock = -1
        self._held: dict[str, int] = {}
        self._towers = Counter[str]()

    async def start(self) -> None:
        """Removes what daemons that were killed left behind."""
        if self._folder is not None:
            await asyncio.to_thread(_sweep, self._folder)

    async def close(self) -> None:
        """Nothing of ours is left in memory."""
        if self._root is not None:
            await asyncio.to_thread(shutil.rmtree, self._root, ignore_errors=True)
            os.close(self._lock)
            self._root = None

    def plan(
        self,
        name: str,
        source: str,
        choice: Choice,
        inspection: Inspection,
        shortage: str,
        tower: Inspection | None = None,
    ) -> Placement:
        """Where the artifact of `source` (hex) will be. `shortage` says what the disk lacks.

        `tower`: of the file with the vision tower that goes there too.
        Raises LoadFailed with both sizes, of the disk and of memory, when it fits in neither.
        """
        runtime = choice.target.partition("-")[0]
        estimate = inspection.memory.get(runtime, MemoryEstimate())
        artifact_bytes = inspection.estimates.get(runtime, 0)
        tower_bytes = 0
        if tower is not None:
            artifact_bytes += tower.vision_estimates.get(runtime, 0)
            tower_bytes = tower.vision_memory.get(runtime, 0)
        needed = artifact_bytes + SPARE_BYTES
        free = self._free_bytes()
        if self._folder is None or needed > free:
            free_now = self._measure_free(0)
            reason = f"{needed} bytes needed, {free} bytes free" if self._folder else _NOWHERE
            raise LoadFailed(
                f"model '{name}' could not be loaded: its artifact fits neither on the disk "
                f"({shortage}) nor in memory ({reason}; loading it takes "
                f"{artifact_bytes + estimate.resident_bytes + tower_bytes} bytes, {free_now} bytes"
                " free)"
            )
        root = self._own_root(self._folder)
        folder = self._conversions.artifact_folder(source, choice.target, artifacts=root)
        projector = self._vision_folder(tower.digest, choice.target) if tower else ""
        return Placement(
            backend=choice.backend,
            artifact=str(folder),
            projector=str(projector),
            device=choice.device,
            weight_bytes=artifact_bytes + estimate.resident_bytes + tower_bytes,
            tower_bytes=tower_bytes,
            kv_bytes_per_token=estimate.kv_bytes_per_token,
            row_bytes=estimate.row_bytes,
            max_context_length=estimate.context_length,
            original_context_length=estimate.original_context_length,
            reason=choice.reason,
            in_memory=InMemory(
                source=source,
                vision_source=tower.digest if tower else "",
                choice=choice,
                artifact_bytes=artifact_bytes,
                shortage=shortage,
            ),
        )

    async def make(self, placement: Placement) -> Placement:
        """Converts where the placement says so. Raises DaemonError; leaves nothing then."""
        wanted = placement.in_memory
        if wanted is None:
            return placement
        self._held[placement.artifact] = wanted.artifact_bytes
        self._towers[placement.projector] += 1
        try:
            return await self._make(placement, wanted)
        except BaseException:
            await asyncio.shield(self.discard(placement))
            raise

    async def _make(self, placement: Placement, wanted: InMemory) -> Placement:
        assert self._root is not None
        target = wanted.choice.target
        steps = self._conversions.ensure_artifact(wanted.source, target, artifacts=self._root)
        try:
            await _finish(steps)
            folder = pathlib.Path(placement.artifact)
            artifact = read_artifact(folder)
            made = placement_of(artifact, folder, wanted.choice)
            made = msgspec.structs.replace(made, blindness=placement.blindness)
            if wanted.vision_source:
                made = await self._seeing(made, artifact, wanted.vision_source)
        except NoSpace as error:
            raise LoadFailed(
                f"its artifact fits neither on the disk ({wanted.shortage}) nor in memory "
                f"({error.message})"
            ) from error
        except ArtifactError as error:
            raise LoadFailed(str(error)) from error
        size = _files_bytes(folder)
        size += _files_bytes(pathlib.Path(made.projector)) if made.projector else 0
        self._held[placement.artifact] = size
        log.info("converted into memory, as the disk lacks room: %d bytes", size)
        return msgspec.structs.replace(
            made,
            weight_bytes=made.weight_bytes + size,
            in_memory=msgspec.structs.replace(wanted, artifact_bytes=size),
        )

    async def _seeing(self, made: Placement, artifact: Artifact, source: str) -> Placement:
        """With the tower of this blob (hex), or why there is none."""
        steps = self._conversions.ensure_vision(source, made.target, artifacts=self._root)
        try:
            await _finish(steps)
            return seeing(made, artifact, self._vision_folder(source, made.target))
        except Busy:
            raise
        except (DaemonError, ArtifactError) as error:
            return msgspec.structs.replace(made, blindness=str(error))

    def _vision_folder(self, source: str, target: str) -> pathlib.Path:
        return self._conversions.vision_folder(source, target, artifacts=self._root)

    async def discard(self, placement: Placement) -> None:
        """The worker is gone; returns when the memory is free."""
        wanted = placement.in_memory
        if wanted is None or self._held.pop(placement.artifact, None) is None:
            return
        await asyncio.to_thread(_discard, pathlib.Path(placement.artifact))
        if wanted.vision_source:
            projector = self._vision_folder(wanted.vision_source, wanted.choice.target)
            self._towers[str(projector)] -= 1
            if self._towers[str(projector)] <= 0:  # another model may have the same eyes
                await asyncio.to_thread(_discard, projector)

    def _free_bytes(self) -> int:
        """What the filesystem could take if every worker but the new one's went."""
        if self._folder is None:
            return 0
        return shutil.disk_usage(self._folder).free + sum(self._held.values())

    def _own_root(self, folder: pathlib.Path) -> pathlib.Path:
        """Made at the first need, for this user only."""
        while self._root is None:
            made = pathlib.Path(tempfile.mkdtemp(prefix=_prefix(), dir=folder))
            self._lock = _locked(made)
            if self._lock >= 0:
                self._root = made
        return self._root


async def _finish(steps: AsyncGenerator[object]) -> None:
    async with contextlib.aclosing(steps):
        async for _ in steps:
            pass


def _prefix() -> str:
    return f"hearth-{os.getuid()}-"


def _locked(folder: pathlib.Path) -> int:
    """A descriptor that holds the lock; -1 when somebody else has it or removed the folder."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(folder, flags)
    except OSError:
        return -1
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(descriptor)
        if os.path.samestat(status, folder.lstat()) and status.st_uid == os.getuid():
            return descriptor
    os.close(descriptor)
    return -1


def _sweep(folder: pathlib.Path) -> None:
    for left in list(folder.glob(f"{_prefix()}*")):
        descriptor = _locked(left)
        if descriptor >= 0:
            shutil.rmtree(left, ignore_errors=True)
            os.close(descriptor)


def _files_bytes(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _discard(folder: pathlib.Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()
