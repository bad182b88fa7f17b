"""Texts for an engine that gives vectors: what is refused, and which of them share a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from backends.engine.contract import EngineCapabilities
from backends.types import EngineError

# Ids of one run, padding included: more make a run no faster an id, and take memory.
MAX_RUN_IDS = 1024
# Padding costs as much as text: beyond so many ids a run takes only texts of nearly one length.
ENOUGH_RUN_IDS = 64
MAX_STRETCH = 1.15


def check_text(ids: Sequence[int], limits: EngineCapabilities) -> None:
    """Raises EngineError: "invalid" or "too_long"."""
    if not ids:
        raise EngineError("invalid", "a text has no ids")
    if len(ids) > limits.context_length:
        raise EngineError("too_long", "the input length exceeds the context length")
    if min(ids) < 0 or max(ids) >= limits.vocabulary:
        raise EngineError("invalid", "a text has ids that the model has not")


def plan_runs(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Places of texts by length, in runs of at most `most` padded ids, or of one text."""
    run: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if run and _is_full(len(run), lengths[run[0]], lengths[run[-1]], lengths[place], most):
            yield run
            run = []
        run.append(place)
    if run:
        yield run


def _is_full(count: int, shortest: int, longest: int, new: int, most: int) -> bool:
    is_enough = count * longest >= ENOUGH_RUN_IDS
    return (count + 1) * new > most or (is_enough and new > shortest * MAX_STRETCH)
