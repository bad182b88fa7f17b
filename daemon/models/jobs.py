"""Conversions: who waits for what, one converter at a time, results on disk.

Callers of the same artifact share one job and see its progress; when the last of them leaves, the
converter is killed and its staging folder removed. Nothing here reads a GGUF: child processes do.
"""

from __future__ import annotations

import asyncio
import pathlib
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import msgspec

from converters.artifact import (
    AdapterArtifact,
    Artifact,
    ArtifactError,
    adapter_folder,
    read_adapter,
    read_artifact,
    variant_folder,
)
from converters.inspection import Inspection
from converters.vision_artifact import VisionArtifact, read_vision, vision_folder
from daemon.errors import Busy, DaemonError, LoadFailed
from daemon.models.converter_process import (
    ConverterLine,
    discard_folder,
    run_converter,
    sweep_staging,
)
from daemon.models.inspections import Inspections

CONVERTER_COMMAND = (sys.executable, "-m", "converters")


class ConversionProgress(msgspec.Struct, frozen=True, kw_only=True):
    """`phase` is "queued" or the converter's own: plan, write, verify, sync; counts are bytes."""

    phase: str
    done: int = 0
    total: int = 0


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """A conversion that runs or waits for its turn. `source` is the source id."""

    source: str
    variant: str
    waiters: int
    progress: ConversionProgress


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A folder that a converter makes: what it is told, and what reads the folder afterwards."""

    source: str
    folder: pathlib.Path
    arguments: tuple[str, ...]
    read: Callable[[pathlib.Path], object] = read_artifact

    def is_there(self) -> bool:
        try:
            self.read(self.folder)
        except ArtifactError:
            return False
        return True

    def require(self) -> None:
        try:
            self.read(self.folder)
        except ArtifactError as error:
            raise LoadFailed(f"the converter left no artifact: {error}") from error


class _Job:
    """One conversion. `changed` is set, and replaced, whenever there is news."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.source = wanted.source
        self.folder = wanted.folder
        self.progress = ConversionProgress(phase="queued")
        self.waiters = 0
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def start(self, run: asyncio.Task[None]) -> None:
        self.task = run
        run.add_done_callback(lambda _: self.changed.set())

    def report(self, line: ConverterLine) -> None:
        self.progress = ConversionProgress(phase=line.phase, done=int(line.done), total=line.total)
        self.changed.set()
        self.changed = asyncio.Event()

    @property
    def is_over(self) -> bool:
        return self.task is not None and self.task.done()

    def result(self) -> None:
        """Raises what the conversion failed with: an error of its own for each waiter."""
        assert self.task is not None
        if self.task.cancelled():
            raise Busy("the conversion was stopped")
        error = self.task.exception()
        if isinstance(error, DaemonError):
            raise type(error)(error.message)
        if error is not None:
            raise LoadFailed(f"the conversion failed: {error}") from error


class Conversions:
    """`blob_path` gives the file of a hex digest; `is_busy` tells whether requests are running.

    `outcomes` counts what is over since the start: done, failed, stopped.
    """

    def __init__(
        self,
        *,
        home: pathlib.Path,
        artifacts: pathlib.Path,
        blob_path: Callable[[str], pathlib.Path],
        is_busy: Callable[[], bool] = lambda: False,
        converter_command: Sequence[str] = CONVERTER_COMMAND,
    ) -> None:
        self._artifacts = artifacts.absolute()
        self._blob_path = blob_path
        self._is_busy = is_busy
        self._command = tuple(converter_command)
        self._jobs: dict[pathlib.Path, _Job] = {}
        self._one_converter = asyncio.Lock()
        self.outcomes = Counter[str]()
        self._inspections = Inspections(
            home=home.absolute(), blob_path=blob_path, is_busy=is_busy, command=self._command
        )

    async def start(self) -> None:
        """Removes what converters killed together with an earlier daemon left behind."""
        await asyncio.to_thread(sweep_staging, self._artifacts)

    async def close(self) -> None:
        """Stops every child and waits for them."""
        tasks: list[asyncio.Task[Any]] = list(self._inspections.tasks())
        tasks += [job.task for job in self._jobs.values() if job.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- artifacts ----

    def artifact_folder(
        self,
        source: str,
        target: str,
        *,
        precise: bool = False,
        artifacts: pathlib.Path | None = None,
    ) -> pathlib.Path:
        """Where the artifact of this source id lies or would lie, below `artifacts` if given."""
        return (artifacts or self._artifacts) / source / variant_folder(target, precise=precise)

    def made_folder(self, source: str, name: str) -> pathlib.Path:
        """Where a converter's own file lies until the shelf has it."""
        return self._artifacts / source / name

    def artifact(self, source: str, target: str, *, precise: bool = False) -> Artifact | None:
        """The artifact's description when it is there and this build can read it."""
        try:
            return read_artifact(self.artifact_folder(source, target, precise=precise))
        except ArtifactError:
            return None

    def jobs(self) -> list[JobView]:
        """Running and waiting conversions, in the order in which they will be done."""
        return [
            JobView(
                source=job.source,
                variant=job.folder.name,
                waiters=job.waiters,
                progress=job.progress,
            )
            for job in self._jobs.values()
        ]

    def ensure_artifact(
        self,
        source: str,
        target: str,
        *,
        precise: bool = False,
        artifacts: pathlib.Path | None = None,
    ) -> AsyncGenerator[ConversionProgress]:
        """Yields progress until the artifact is there; nothing at all when it already is.

        `artifacts` is another root than the shelf's own, whose content is the caller's to remove.
        Close the generator (`contextlib.aclosing`) to leave early: the last one to leave stops the
        conversion. Raises Invalid, NotYet, NoSpace, LoadFailed, or Busy when the daemon stops.
        """
        arguments = ["convert", "--input", str(self._blob_path(source))]
        arguments += ["--source", source, "--target", target]
        folder = self.artifact_folder(source, target, precise=precise, artifacts=artifacts)
        arguments += ["--precise"] if precise else []
        return self.ensure(Wanted(source=source, folder=folder, arguments=tuple(arguments)))

    # ---- adapters ----

    def adapter_folder(self, adapter: str, base: str, target: str) -> pathlib.Path:
        """Where the artifact of an adapter (a blob's hex digest) over a base lies or would lie."""
        return self._artifacts / adapter / adapter_folder(variant_folder(target), base)

    def adapter(self, adapter: str, base: str, target: str) -> AdapterArtifact | None:
        """As `artifact`, of an adapter over a base."""
        try:
            folder = self.adapter_folder(adapter, base, target)
            return read_adapter(folder, self.artifact_folder(base, target))
        except ArtifactError:
            return None

    async def check_adapter(self, adapter: str, base: str, target: str) -> None:
        """Raises Invalid for an adapter of another model, NotYet for what is not supported."""
        await self._inspections.run(self._adapter_arguments("match", adapter, base, target))

    def ensure_adapter(
        self, adapter: str, base: str, target: str
    ) -> AsyncGenerator[ConversionProgress]:
        """As `ensure_artifact`, which must have made the base's artifact before."""
        base_folder = self.artifact_folder(base, target)
        arguments = self._adapter_arguments("adapt", adapter, base, target)
        arguments += ["--source", adapter, "--base-source", base, "--base-folder", str(base_folder)]
        wanted = Wanted(
            source=adapter,
            folder=self.adapter_folder(adapter, base, target),
            arguments=tuple(arguments),
            read=lambda folder: read_adapter(folder, base_folder),
        )
        return self.ensure(wanted)

    def _adapter_arguments(self, command: str, adapter: str, base: str, target: str) -> list[str]:
        paths = ["--input", str(self._blob_path(adapter)), "--base", str(self._blob_path(base))]
        return [command, *paths, "--target", target]

    # ---- vision towers ----

    def vision_folder(
        self, source: str, target: str, *, artifacts: pathlib.Path | None = None
    ) -> pathlib.Path:
        """Where the artifact of the vision tower in this file lies or would lie."""
        return (artifacts or self._artifacts) / source / vision_folder(target)

    def vision(self, source: str, target: str) -> VisionArtifact | None:
        """As `artifact`, of the vision tower in a file."""
        try:
            return read_vision(self.vision_folder(source, target))
        except ArtifactError:
            return None

    def ensure_vision(
        self, source: str, target: str, *, artifacts: pathlib.Path | None = None
    ) -> AsyncGenerator[ConversionProgress]:
        """As `ensure_artifact`, of the vision tower in a projector file or in a model's own."""
        arguments = ["vision", "--input", str(self._blob_path(source))]
        arguments += ["--source", source, "--target", target]
        wanted = Wanted(
            source=source,
            folder=self.vision_folder(source, target, artifacts=artifacts),
            arguments=tuple(arguments),
            read=read_vision,
        )
        return self.ensure(wanted)

    # ---- jobs ----

    async def ensure(self, wanted: Wanted) -> AsyncGenerator[ConversionProgress]:
        """As `ensure_artifact`, of anything that a converter makes."""
        if wanted.is_there():
            return
        job = self._jobs.get(wanted.folder) or self._start_job(wanted)
        job.waiters += 1
        try:
            while not job.is_over:
                changed = job.changed
                yield job.progress
                await changed.wait()
            job.result()
        finally:
            job.waiters -= 1
            if not job.waiters and not job.is_over:
                await self._stop_job(job)

    def _start_job(self, wanted: Wanted) -> _Job:
        job = _Job(wanted)
        command = [*self._command, *wanted.arguments, "--watch-stdin"]
        command += ["--output", str(wanted.folder)]
        self._jobs[wanted.folder] = job
        job.start(asyncio.create_task(self._convert(job, command)))
        return job

    async def _convert(self, job: _Job, command: list[str]) -> None:
        outcome = "failed"
        try:
            async with self._one_converter:
                await self._run_in_staging(job, command)
            job.wanted.require()
            outcome = "done"
        except asyncio.CancelledError:
            outcome = "stopped"
            raise
        finally:
            self.outcomes[outcome] += 1
            self._forget(job)

    async def _run_in_staging(self, job: _Job, command: list[str]) -> None:
        await asyncio.to_thread(_make_room, job.folder)
        try:
            await run_converter(command, job.report, self._is_busy)
        except BaseException:
            # The child is dead by now; a killed one could not clean up after itself.
            await asyncio.shield(asyncio.to_thread(sweep_staging, job.folder.parent.parent))
            raise

    async def _stop_job(self, job: _Job) -> None:
        """Forgotten at once, so that whoever comes now starts anew and does not share the end."""
        assert job.task is not None
        self._forget(job)
        job.task.cancel()
        await asyncio.shield(asyncio.wait({job.task}))

    def _forget(self, job: _Job) -> None:
        if self._jobs.get(job.folder) is job:
            del self._jobs[job.folder]

    # ---- inspections ----

    def known_inspection(self, digest: str) -> Inspection | None:
        """The inspection of a blob (hex) if it was ever made; starts nothing."""
        return self._inspections.known(digest)

    async def inspect(self, digest: str) -> Inspection:
        """The inspection of a blob (hex), made now if need be. Raises Invalid, NotYet, LoadFailed."""
        return await self._inspections.inspection(digest)

    async def preview(self, path: pathlib.Path) -> Inspection:
        """A look at a file that is in no store yet; its digest is not known, nothing is kept."""
        return await self._inspections.preview(path)

    async def arrays(self, digest: str) -> dict[str, msgspec.Raw]:
        """The long metadata arrays of an inspected blob, as JSON; empty when there are none."""
        return await self._inspections.arrays(digest)


def _make_room(folder: pathlib.Path) -> None:
    """The parent folder, without an artifact that no engine of this build can read any more."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        discard_folder(folder)
