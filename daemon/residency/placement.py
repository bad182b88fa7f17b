"""Where a model's weights lie and what runs them: everything `Residency` must know to load it.

`Placement` is data. A `Placer` makes one for a model, converting it first when no artifact exists;
`ArtifactPlacer` does so with the daemon's conversions and the choice of backend.
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Protocol

import msgspec

from backends.select import Choice
from converters.artifact import Artifact, ArtifactError, read_adapter, read_artifact
from converters.inspection import Inspection
from converters.vision_artifact import misfit, read_vision
from daemon.errors import Busy, DaemonError, LoadFailed, NoSpace
from daemon.models.resolved import ResolvedModel
from daemon.models.sight import look_for
from daemon.residency.plan import WorkerKey

_log = logging.getLogger("hearth.residency")


class InMemory(msgspec.Struct, frozen=True, kw_only=True):
    """An artifact that is converted into memory: of which blob (hex), to what, and how large.

    `shortage` says what the disk lacks for it. `vision_source`: the blob (hex) whose vision tower goes
    there too, "" without one.
    """

    source: str
    vision_source: str = ""
    choice: Choice
    artifact_bytes: int
    shortage: str


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """`artifact` is a folder. `max_context_length` 0: the model states none.

    `weight_bytes` is the estimate of the memory that everything but rows takes; a row takes
    `row_bytes` and `kv_bytes_per_token` for each id.
    `reason` is the sentence that says why it runs there; `target` what was converted to.
    `device_bytes`: all memory of a device that has its own, which then holds the model; else 0.
    `original_context_length` > 0 only for longrope, where longer rows need another worker.
    `in_memory`: the artifact is one of memory, made when the load begins; `weight_bytes` counts it.
    `projector` is the folder of the vision tower, which a worker loads at the first image; of
    `weight_bytes` it takes `tower_bytes`. `blindness` says why there is none in spite of a projector.
    """

    backend: str
    artifact: str
    device: str = "cpu"
    adapters: tuple[str, ...] = ()
    projector: str = ""
    draft: str = ""
    weight_bytes: int = 0
    kv_bytes_per_token: int = 0
    row_bytes: int = 0
    max_context_length: int = 0
    original_context_length: int = 0
    precise: bool = False
    reason: str = ""
    in_memory: InMemory | None = None
    target: str = ""
    device_bytes: int = 0
    tower_bytes: int = 0
    blindness: str = ""

    def row_length(self, wanted: int) -> int:
        """Ids a row must hold for `wanted`, which no model exceeds its own length for."""
        return min(wanted, self.max_context_length) if self.max_context_length else wanted

    def key(self, row_length: int) -> WorkerKey:
        return WorkerKey(
            artifact=self.artifact,
            adapters=self.adapters,
            projector=self.projector,
            draft=self.draft,
            device=self.device,
            is_long=0 < self.original_context_length < row_length,
        )

    def needed_bytes(self, row_length: int) -> int:
        """To load it with one full row; more rows take what is left."""
        return self.weight_bytes + self.full_row_bytes(row_length)

    def full_row_bytes(self, row_length: int) -> int:
        return self.row_bytes + self.kv_bytes_per_token * row_length


class Placer(Protocol):
    async def place(self, model: ResolvedModel) -> Placement:
        """May take as long as a conversion. Raises DaemonError."""
        ...

    async def prepare(self, placement: Placement) -> Placement:
        """Just before a worker loads it: what the placement says is to be made is made now.

        Raises DaemonError, and leaves nothing then.
        """
        ...

    async def discard(self, placement: Placement) -> None:
        """The worker of a prepared placement is gone: what was made for it goes too."""
        ...

    def avoid(self, model: ResolvedModel, placement: Placement, reason: str) -> None:
        """The placement's device cannot hold the model, or is wrong: `place` finds another one."""
        ...


def seeing(placement: Placement, artifact: Artifact, folder: pathlib.Path) -> Placement:
    """With the vision tower in `folder`, if it is for this model. Raises ArtifactError."""
    tower = read_vision(folder)
    if reason := misfit(tower, artifact):
        return msgspec.structs.replace(placement, blindness=reason)
    kept = tower.resident_bytes.get(placement.device, tower.file_bytes)
    return msgspec.structs.replace(
        placement,
        projector=str(folder),
        tower_bytes=kept + tower.run_bytes,
        weight_bytes=placement.weight_bytes + kept + tower.run_bytes,
    )


def placement_of(artifact: Artifact, folder: pathlib.Path, choice: Choice) -> Placement:
    """The placement of an artifact that exists, without adapter and projector."""
    originals = [rope.original_context_length for rope in artifact.rope.values()]
    has_long = any(rope.long_inverse_frequencies for rope in artifact.rope.values())
    return Placement(
        backend=choice.backend,
        artifact=str(folder),
        device=choice.device,
        weight_bytes=artifact.resident_bytes.get(choice.device, artifact.file_bytes),
        kv_bytes_per_token=artifact.kv_bytes_on(choice.device),
        row_bytes=artifact.states_bytes,
        max_context_length=artifact.context_length,
        original_context_length=max(originals, default=0) if has_long else 0,
        precise=artifact.precise,
        reason=choice.reason,
        target=choice.target,
        device_bytes=choice.device_bytes,
    )


class Conversions(Protocol):
    """The part of `daemon.models.jobs` that is used here. `source` is a blob's hex digest."""

    async def inspect(self, digest: str) -> Inspection: ...

    def ensure_artifact(self, source: str, target: str) -> AsyncGenerator[object]:
        """Converts unless the artifact exists; yields progress. Closed early, it gives up."""
        ...

    def artifact_folder(self, source: str, target: str) -> pathlib.Path: ...

    def ensure_adapter(self, adapter: str, base: str, target: str) -> AsyncGenerator[object]:
        """As `ensure_artifact`, of an adapter (a blob's hex digest) over a base that is there."""
        ...

    def adapter_folder(self, adapter: str, base: str, target: str) -> pathlib.Path: ...

    def ensure_vision(self, source: str, target: str) -> AsyncGenerator[object]:
        """As `ensure_artifact`, of the vision tower in a file."""
        ...

    def vision_folder(self, source: str, target: str) -> pathlib.Path: ...


class Memory(Protocol):
    """`daemon.residency.memory_artifacts`, which builds on this file."""

    def plan(
        self,
        name: str,
        source: str,
        choice: Choice,
        inspection: Inspection,
        shortage: str,
        tower: Inspection | None = None,
    ) -> Placement: ...

    async def make(self, placement: Placement) -> Placement: ...

    async def discard(self, placement: Placement) -> None: ...


class ArtifactPlacer:
    def __init__(
        self,
        conversions: Conversions,
        choose: Callable[[ResolvedModel], Awaitable[Choice]],
        memory: Memory | None = None,
        avoid: Callable[[str, str, str], None] = lambda _source, _target, _reason: None,
        gave_back: Callable[[str], None] = lambda _target: None,
    ) -> None:
        """`choose` raises DaemonError when nothing here can run the model.

        `memory` takes the artifacts that the disk has no room for; None: such a load fails.
        `avoid` is told a source, a target and why `choose` must not give it again for a while,
        `gave_back` the target of a worker that is gone from a device with memory of its own.
        """
        self._conversions = conversions
        self._choose = choose
        self._memory = memory
        self._avoid = avoid
        self._gave_back = gave_back

    def avoid(self, model: ResolvedModel, placement: Placement, reason: str) -> None:
        self._avoid(model.require_weights().digest, placement.target, reason)

    async def place(self, model: ResolvedModel) -> Placement:
        model.require_adapters()
        digest = model.require_weights().digest
        choice = await self._choose(model)
        try:
            await _finish(self._conversions.ensure_artifact(digest, choice.target))
        except NoSpace as error:
            return await self._place_in_memory(model, digest, choice, error)
        folder = self._conversions.artifact_folder(digest, choice.target)
        try:
            artifact = read_artifact(folder)
            placement = placement_of(artifact, folder, choice)
            placement = await self._adapted(model, placement, choice.target)
        except ArtifactError as error:
            raise LoadFailed(f"model '{model.name.short}': {error}") from error
        return await self._seeing(model, artifact, placement)

    async def _seeing(
        self, model: ResolvedModel, artifact: Artifact, placement: Placement
    ) -> Placement:
        """With the model's eyes where they can be used. Texts are answered without them too."""
        inspection = await self._conversions.inspect(model.model_digest)
        eyes = await look_for(model, inspection, self._conversions, placement.target)
        if not eyes.can_see:
            return msgspec.structs.replace(placement, blindness=eyes.blindness)
        try:
            await _finish(self._conversions.ensure_vision(eyes.source, placement.target))
            folder = self._conversions.vision_folder(eyes.source, placement.target)
            return seeing(placement, artifact, folder)
        except Busy:
            raise
        except (DaemonError, ArtifactError) as error:
            _log.warning("%s takes no images: %s", model.name.short, error)
            return msgspec.structs.replace(placement, blindness=str(error))

    async def _adapted(self, model: ResolvedModel, placement: Placement, target: str) -> Placement:
        """With the model's adapter, where it has one."""
        base = model.require_weights().digest
        for file in model.require_adapters():
            await _finish(self._conversions.ensure_adapter(file.digest, base, target))
            folder = self._conversions.adapter_folder(file.digest, base, target)
            adapter = read_adapter(folder, pathlib.Path(placement.artifact))
            placement = msgspec.structs.replace(
                placement,
                adapters=(str(folder),),
                weight_bytes=placement.weight_bytes + adapter.resident_bytes,
            )
        return placement

    async def _place_in_memory(
        self, model: ResolvedModel, digest: str, choice: Choice, error: NoSpace
    ) -> Placement:
        if self._memory is None or model.adapters:
            raise error  # an adapter's artifact is made beside that of its base
        inspection = await self._conversions.inspect(digest)
        eyes = await look_for(model, inspection, self._conversions, choice.target)
        tower = await self._conversions.inspect(eyes.source) if eyes.can_see else None
        name, shortage = model.name.short, error.message
        placement = self._memory.plan(name, digest, choice, inspection, shortage, tower)
        return msgspec.structs.replace(placement, blindness=eyes.blindness)

    async def prepare(self, placement: Placement) -> Placement:
        return await self._memory.make(placement) if self._memory else placement

    async def discard(self, placement: Placement) -> None:
        if placement.device_bytes:
            self._gave_back(placement.target)
        if self._memory is not None:
            await self._memory.discard(placement)


async def _finish(steps: AsyncGenerator[object]) -> None:
    async with contextlib.aclosing(steps):
        async for _ in steps:
            pass
