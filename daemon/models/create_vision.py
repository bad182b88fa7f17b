"""The eyes of a model that is pulled or made: its vision tower is converted after its weights.

A tower that this build cannot convert takes nothing from the model: that is said, and it is kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterable

from converters.inspection import Inspection
from daemon.errors import Busy, DaemonError, Invalid
from daemon.models import manifest as media
from daemon.models.create_request import CreateStatus
from daemon.models.jobs import ConversionProgress, Conversions
from daemon.models.manifest import Layer, parse_digest
from daemon.models.sight import refusal

ONE_SOURCE = "only one of 'from' and 'files' can be given, unless the files are projectors"


async def convert_vision(
    conversions: Conversions, layers: Iterable[Layer], target: str
) -> AsyncGenerator[CreateStatus]:
    """Nothing for a model without eyes. Raises Busy when the daemon stops, and nothing else."""
    try:
        seen = await _with_tower(conversions, layers)
        if seen is None:
            return
        if reason := refusal(seen, target):
            yield _blind(reason)
            return
        steps = conversions.ensure_vision(seen.digest, target)
        async with contextlib.aclosing(steps):
            async for step in steps:
                yield _status(step)
    except Busy:
        raise
    except DaemonError as error:
        yield _blind(error.message)


async def _with_tower(conversions: Conversions, layers: Iterable[Layer]) -> Inspection | None:
    """Of the first projector, else of weights that have a tower inside."""
    digests = {layer.media_type: parse_digest(layer.digest) for layer in reversed([*layers])}
    if projector := digests.get(media.PROJECTOR):
        return await conversions.inspect(projector)
    weights = digests.get(media.MODEL)
    seen = await conversions.inspect(weights) if weights else None
    return seen if seen and seen.projector_type else None


def _status(step: ConversionProgress) -> CreateStatus:
    is_waiting = step.phase == "queued"
    status = "waiting for another conversion" if is_waiting else "converting the vision tower"
    return CreateStatus(status=status, total=step.total, completed=step.done)


def _blind(reason: str) -> CreateStatus:
    return CreateStatus(status=f"the model takes texts but no images here: {reason}")


def check_projectors(layers: Iterable[Layer]) -> None:
    """Raises Invalid for another file."""
    for layer in layers:
        if layer.media_type != media.PROJECTOR:
            raise Invalid(f"{ONE_SOURCE}; {layer.source} is none")


def with_projectors(layers: list[Layer], new: list[Layer]) -> list[Layer]:
    """`new` in the place of the projectors among `layers`."""
    kept = [layer for layer in layers if layer.media_type != media.PROJECTOR]
    place = next((i + 1 for i, one in enumerate(kept) if one.media_type == media.MODEL), 0)
    return [*kept[:place], *new, *kept[place:]]
