"""A request that has a row: what the ONNX engine keeps of it beside its `Generation`."""

from __future__ import annotations

from collections.abc import Sequence

from backends.engine.generation import Generation
from backends.engine.sampling import Sampler
from backends.engine.speculation import Guesser
from backends.onnx.prefix_cache import Seating
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


class Seat:
    def __init__(self, applicant: Applicant, seating: Seating) -> None:
        self.generation = applicant.generation
        self.sampler = applicant.sampler
        self.is_exact = applicant.is_exact
        self.is_alone = applicant.is_alone
        self.row = seating.row
        self.source = seating.source
        self.shared = seating.shared
        self.is_refilled = (
            False  # its context was shifted: what is fed now has been answered before
        )
        self._guesser: Guesser | None = None

    @property
    def left(self) -> int:
        """Ids that still have to be fed before the next one can be sampled."""
        return len(self.generation.ids) - self.generation.prefilled

    def guesser(self) -> Guesser:
        """Made when the row first decodes alone; must then be told of every run, or forgotten."""
        if self._guesser is None:
            self._guesser = Guesser(self.generation.ids)
        return self._guesser

    def forget_guesser(self) -> None:
        self._guesser = None


def is_exact(request: GenerateRequest) -> bool:
    """Who gives a seed, or asks for it by name, wants the same answer again."""
    return request.reproducible or request.sampling.seed is not None


def plan_prefill(seats: Sequence[Seat], turn: int) -> Seat:
    """Whose chunk is next: the longest waiting and the one with least left take turns.

    So a short prompt does not wait for a long one, and a long one is never starved.
    """
    return seats[0] if turn % 2 == 0 else min(seats, key=lambda seat: seat.left)
