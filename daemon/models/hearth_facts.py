"""What only Hearth tells of a model: how exactly it was converted, to what, and what stands against it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from converters.artifact import TARGETS, Artifact
from converters.inspection import Inspection
from daemon.models.jobs import Conversions
from daemon.models.resolved import ResolvedModel
from daemon.models.sight import Eyes


class ShownArtifact(msgspec.Struct, frozen=True, kw_only=True):
    """How exactly the weights were repacked, and bytes: on disk, and in memory per device."""

    exactness: dict[str, int]
    file_bytes: int
    resident_bytes: dict[str, int]
    kv_bytes_per_token: int


class ShownAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """The model's adapter over its weights: matrices it belongs to, its largest rank, bytes.

    `max_error`: the most that a number of it was rounded by.
    """

    matrices: int
    rank: int
    file_bytes: int
    resident_bytes: int
    max_error: float = 0.0


class ShownTower(msgspec.Struct, frozen=True):
    """Bytes: on disk, in memory per device, and what a run takes beside."""

    file_bytes: int
    resident_bytes: dict[str, int]
    run_bytes: int


class ShownEyes(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The kind of projector, why it cannot be used here, its artifacts by target.

    Of several projectors the first is used.
    """

    projector: str
    refusal: str = ""
    unused_projectors: int = 0
    artifacts: dict[str, ShownTower] = {}


class HearthFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Per target: `artifacts` and `adapters` that exist, `estimates` of bytes on disk, `refusals`.

    `vision` is None for a model without eyes.
    """

    artifacts: dict[str, ShownArtifact] = {}
    adapters: dict[str, ShownAdapter] = {}
    estimates: dict[str, int] = {}
    refusals: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    vision: ShownEyes | None = None


def hearth_facts(
    model: ResolvedModel, inspection: Inspection | None, conversions: Conversions, eyes: Eyes
) -> HearthFacts:
    if inspection is None:
        return HearthFacts()
    found = {target: conversions.artifact(model.model_digest, target) for target in TARGETS}
    return HearthFacts(
        artifacts={target: _shown(artifact) for target, artifact in found.items() if artifact},
        adapters=dict(_shown_adapters(model, conversions)),
        estimates=inspection.estimates,
        refusals=inspection.refusals,
        warnings=inspection.warnings,
        vision=_shown_eyes(eyes, conversions) if eyes.source else None,
    )


def _shown_eyes(eyes: Eyes, conversions: Conversions) -> ShownEyes:
    towers = {target: conversions.vision(eyes.source, target) for target in TARGETS}
    return ShownEyes(
        projector=eyes.kind,
        refusal=eyes.blindness,
        unused_projectors=eyes.unused,
        artifacts={
            target: ShownTower(tower.file_bytes, tower.resident_bytes, tower.run_bytes)
            for target, tower in towers.items()
            if tower
        },
    )


def _shown(artifact: Artifact) -> ShownArtifact:
    return ShownArtifact(
        exactness=artifact.exactness_counts(),
        file_bytes=artifact.file_bytes,
        resident_bytes=artifact.resident_bytes,
        kv_bytes_per_token=artifact.kv_bytes_per_token,
    )


def _shown_adapters(
    model: ResolvedModel, conversions: Conversions
) -> Iterable[tuple[str, ShownAdapter]]:
    """(target, adapter)."""
    for file in model.adapters[:1]:
        for target in TARGETS:
            if adapter := conversions.adapter(file.digest, model.model_digest, target):
                yield (
                    target,
                    ShownAdapter(
                        matrices=len(adapter.targets),
                        rank=adapter.rank,
                        file_bytes=adapter.file_bytes,
                        resident_bytes=adapter.resident_bytes,
                        max_error=adapter.max_error,
                    ),
                )
