"""Whether a model can see here: which file has its vision tower, and what this build makes of that.

A projector that lies beside the weights goes before a tower inside them; of several the first is used.
What cannot be used makes no model useless: it answers texts, and says why it takes no images.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from converters.inspection import Inspection
from daemon.errors import DaemonError
from daemon.models.resolved import ResolvedModel

NO_TOWER = "its projector file has no vision tower"
_NOT_LOOKED_AT = "its projector was not looked at yet"

TargetFor = Callable[[Inspection], Awaitable[str]]


class Eyes(msgspec.Struct, frozen=True, kw_only=True):
    """`source`: the blob (hex) that has the tower, "" for a model without one. `kind`: of projector.

    `blindness` says why it cannot be used here, "" where it can. `unused`: further projectors.
    """

    source: str = ""
    kind: str = ""
    blindness: str = ""
    unused: int = 0

    @property
    def can_see(self) -> bool:
        return bool(self.source) and not self.blindness


class Inspecting(Protocol):
    """The part of `daemon.models.jobs` that is used here."""

    async def inspect(self, digest: str) -> Inspection: ...


def has_eyes(model: ResolvedModel, inspection: Inspection | None) -> bool:
    """Whether there is something to look at, of use or not."""
    return bool(model.projectors) or bool(inspection and inspection.projector_type)


async def look(
    model: ResolvedModel, inspection: Inspection, conversions: Inspecting, target_for: TargetFor
) -> Eyes:
    """Inspects the projector where that was never done. Raises nothing: what goes wrong is told."""
    if not has_eyes(model, inspection):
        return Eyes()
    try:
        return await look_for(model, inspection, conversions, await target_for(inspection))
    except DaemonError as error:  # nothing here runs the weights
        return Eyes(source=model.model_digest, blindness=error.message)


async def look_for(
    model: ResolvedModel, inspection: Inspection, conversions: Inspecting, target: str
) -> Eyes:
    """As `look`, where it is known what the weights are converted to."""
    if not model.projectors:
        return eyes_of(model, inspection, None, target)
    digest = model.projectors[0].digest
    try:
        projector = await conversions.inspect(model.require_projector().digest)
    except DaemonError as error:
        return Eyes(source=digest, blindness=error.message, unused=len(model.projectors) - 1)
    return eyes_of(model, inspection, projector, target)


def eyes_of(
    model: ResolvedModel, inspection: Inspection | None, projector: Inspection | None, target: str
) -> Eyes:
    """By what is known: the inspections of the weights and, where there is one, of the projector."""
    if not model.projectors:
        if inspection is None or not inspection.projector_type:
            return Eyes()
        return _judged(model.model_digest, inspection, target)
    digest, unused = model.projectors[0].digest, len(model.projectors) - 1
    if projector is None:
        return Eyes(source=digest, blindness=_NOT_LOOKED_AT, unused=unused)
    return msgspec.structs.replace(_judged(digest, projector, target), unused=unused)


def _judged(source: str, seen: Inspection, target: str) -> Eyes:
    return Eyes(source=source, kind=seen.projector_type, blindness=refusal(seen, target))


def refusal(seen: Inspection, target: str) -> str:
    """Why the tower in an inspected file is not converted to `target`; "" where it is."""
    if not seen.projector_type:
        return NO_TOWER
    refusals = seen.vision_refusals
    runtime = "onnx" if target == "onnx-cpu" else target
    return refusals.get(runtime, "")
