"""A request that waits for a row, and whose prompt is fed next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from backends.engine.generation import Generation
from backends.engine.sampling import Sampler
from backends.types import GenerateRequest


class Applicant:
    """A request that waits for a row.

    `is_exact`: its ids must not depend on what else runs or ran, so it takes neither guesses nor
    kept positions that round differently. `is_alone`: only an engine without company keeps that.
    """

    def __init__(
        self, generation: Generation, sampler: Sampler, *, has_reproducible_batches: bool
    ) -> None:
        request = generation.request
        self.generation = generation
        self.sampler = sampler
        self.is_exact = is_exact(request)
        self.is_alone = request.reproducible and not has_reproducible_batches

    @property
    def wanted_positions(self) -> int:
        generation = self.generation
        return min(generation.prompt_length + generation.max_tokens, generation.context)


def is_exact(request: GenerateRequest) -> bool:
    """Who gives a seed, or asks for it by name, wants the same answer again."""
    return request.reproducible or request.sampling.seed is not None


class Fed(Protocol):
    """A seat in prefill: `left` ids still have to be fed before the next one can be sampled."""

    @property
    def left(self) -> int: ...


S = TypeVar("S", bound=Fed)


def plan_prefill(seats: Sequence[S], turn: int) -> S:
    """Whose chunk is next: the longest waiting and the one with least left take turns.

    So a short prompt does not wait for a long one, and a long one is never starved.
    """
    return seats[0] if turn % 2 == 0 else min(seats, key=lambda seat: seat.left)
