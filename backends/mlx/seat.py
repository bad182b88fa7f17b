"""A request that has caches, and the rows that decode together as one batch."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
from mlx import nn

from backends.engine.applicant import Applicant
from backends.engine.borders import last_fed, last_grid_border, next_grid_border
from backends.engine.pace import EXACT_CHUNK
from backends.image_span import ImageSpan
from backends.mlx import mlx_lm_internals as internals
from backends.mlx.mlx_lm_internals import Caches

# Lazy bookkeeping in the caches piles up as live buffers, of which a device has only so many.
EVALUATE_EVERY = 32
# Rows of one batch are as long as the longest: so much of it may be padding.
MAX_PADDED_PART = 1.5
MAX_PADDED_POSITIONS = 256


class Seat:
    """`length` positions of `caches` hold something. A seat that decodes has its caches in `group`.

    `exact_length` leading positions were fed on the fixed grid of chunks: their numbers are those
    that any cold run on that grid gives.
    """

    def __init__(self, applicant: Applicant, caches: Caches, length: int, exact: int) -> None:
        self.generation = applicant.generation
        self.sampler = applicant.sampler
        self.is_exact = applicant.is_exact
        self.is_alone = applicant.is_alone
        self.promised_positions = applicant.wanted_positions
        self.caches = caches
        self.length = length
        self.exact_length = exact
        self.group: Group | None = None
        self.is_refilled = False

    @property
    def left(self) -> int:
        """Ids that still have to be fed before the next one can be sampled."""
        return len(self.generation.ids) - self.generation.prefilled

    @property
    def images(self) -> Sequence[ImageSpan]:
        return self.generation.request.images

    @property
    def together(self) -> int:
        """How many of its last ids the run has that asks what follows them: 1, or an image at the end."""
        return last_fed(self.images, len(self.generation.ids))

    @property
    def unfed(self) -> Sequence[int]:
        return self.generation.ids[self.length :]

    def advance(self, positions: int) -> None:
        is_on_grid = last_grid_border(self.images, self.length, EXACT_CHUNK) == self.length
        end = next_grid_border(self.images, self.length, EXACT_CHUNK)
        if is_on_grid and self.exact_length == self.length and self.length + positions == end:
            self.exact_length = end
        self.length += positions

    def roll_back(self, length: int) -> bool:
        """Forgets what lies behind `length`; False where it cannot."""
        if length < self.length and not internals.can_trim(self.caches):
            return False
        internals.trim(self.caches, self.length - length)
        self.length = length
        self.exact_length = min(self.exact_length, length)
        return True

    def prefix(self, length: int) -> Caches:
        """A copy of the first `length` positions, wherever they are."""
        caches = self.caches if self.group is None else self.group.row(self)
        return internals.prefix_of(caches, self.length, length)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest id alone is mostly enough to go on."""
        request = self.generation.request
        sampling = request.sampling
        penalties = (sampling.repeat_penalty, sampling.presence_penalty, sampling.frequency_penalty)
        is_free = request.constraint is None and penalties == (1.0, 0.0, 0.0)
        return sampling.temperature <= 0 and is_free and request.top_logprobs < 1


class Group:
    """Rows that run together. One row keeps the caches of its own; several share those of a batch."""

    def __init__(self, seat: Seat) -> None:
        self.seats = [seat]
        self.caches, seat.caches = seat.caches, []
        seat.group = self
        self._runs = 0

    def row(self, seat: Seat) -> Caches:
        if len(self.seats) == 1:
            return self.caches
        return internals.row_of(self.caches, self.seats.index(seat))

    def join(self, seat: Seat) -> None:
        """`seat` comes from a group of its own, and has been fed something."""
        own = seat.group.caches if seat.group else seat.caches
        seat.caches = []
        if len(self.seats) == 1:
            self.caches = internals.batch_of([self.caches, own])
        else:
            internals.extend_batch(self.caches, internals.batch_of([own]))
        self.seats.append(seat)
        seat.group = self
        internals.evaluate(self.caches)

    def leave(self, seat: Seat, *, is_wanted: bool) -> None:
        """Gives the seat its caches back, if wanted; the batch goes on without them."""
        place = self.seats.index(seat)
        seat.caches = self.row(seat) if is_wanted else []
        seat.group = None
        rest = [other for other in range(len(self.seats)) if other != place]
        if len(rest) == 1:
            self.caches = internals.row_of(self.caches, rest[0])
        elif rest:
            internals.filter_batch(self.caches, rest)
        else:
            self.caches = []
        del self.seats[place]

    @property
    def ends_with_image(self) -> bool:
        """Its next run is one that no other row can share."""
        return any(token_id < 0 for seat in self.seats for token_id in seat.unfed)

    def run(self, model: nn.Module) -> mx.array:
        """Feeds every row its last id, or the image it ends with: lazy logits [rows, vocabulary]."""
        ids = mx.array([[max(token_id, 0) for token_id in seat.unfed] for seat in self.seats])
        logits = model(ids, cache=self.caches)[:, -1]
        self._runs += 1
        if self._runs % EVALUATE_EVERY == 0:
            internals.evaluate(self.caches, logits)
        return logits

    def nbytes(self) -> int:
        return internals.nbytes(self.caches)


def padded_positions(lengths: Sequence[int]) -> int:
    """Positions of a batch of such rows that hold nothing."""
    return len(lengths) * max(lengths) - sum(lengths)


def may_batch(lengths: Sequence[int]) -> bool:
    """Whether rows of such lengths are near enough to share a batch."""
    padded = padded_positions(lengths)
    is_small = padded <= MAX_PADDED_POSITIONS * (len(lengths) - 1)
    return is_small or padded + sum(lengths) <= MAX_PADDED_PART * sum(lengths)
