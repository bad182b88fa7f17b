"""From a projector's header to a plan: what becomes of every tensor, and how large the artifact will be.

Pure, as `converters.plan` is for models. What cannot be planned is refused by name.
"""

from __future__ import annotations

import msgspec

from converters.errors import ConversionError, Unsupported
from converters.gguf import GgufFile
from converters.plan import RUNTIMES
from converters.projectors.form import has_tower, projector_form, projector_type
from converters.projectors.registry import describe_tower
from converters.projectors.tower import VisionShape


class VisionPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One conversion. Sizes in bytes; `resident_bytes` is kept while the tower is loaded, `run_bytes`
    what a run of the largest image takes beside.
    """

    target: str
    tower: VisionShape
    artifact_bytes: int
    resident_bytes: int
    run_bytes: int


class VisionAssessment(msgspec.Struct, frozen=True):
    """As `converters.plan.Assessment`, for the tower in a file; empty where there is none.

    `memory` is what a loaded and running tower takes, in bytes.
    """

    projector_type: str = ""
    refusals: dict[str, str] = {}
    estimates: dict[str, int] = {}
    memory: dict[str, int] = {}


def plan_vision(file: GgufFile, target: str) -> VisionPlan:
    """Raises ConversionError."""
    describe_tower(file)
    raise Unsupported(f"vision towers are not converted for {target} yet")


def assess_vision(file: GgufFile) -> VisionAssessment:
    """Plans the tower for every runtime."""
    if not has_tower(file):
        return VisionAssessment()
    found = VisionAssessment(_kind(file), {}, {}, {})
    for target, runtime in RUNTIMES.items():
        try:
            planned = plan_vision(file, target)
        except ConversionError as error:
            found.refusals[runtime] = str(error)
        else:
            found.estimates[runtime] = planned.artifact_bytes
            found.memory[runtime] = planned.resident_bytes + planned.run_bytes
    return found


def _kind(file: GgufFile) -> str:
    """Empty where the file does not add up: planning it says why."""
    try:
        return projector_type(projector_form(file))
    except ConversionError:
        return ""
