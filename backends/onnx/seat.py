"""A request that has a row: what the ONNX engine keeps of it beside its `Generation`."""

from __future__ import annotations

from backends.engine.applicant import Applicant
from backends.engine.speculation import Guesser
from backends.onnx.image_tables import ImageTables
from backends.onnx.prefix_cache import Seating


class Seat:
    def __init__(
        self, applicant: Applicant, seating: Seating, tables: ImageTables | None = None
    ) -> None:
        """`tables`: where its images turn otherwise than text does; such a row runs alone."""
        self.generation = applicant.generation
        self.sampler = applicant.sampler
        self.is_exact = applicant.is_exact
        self.is_alone = applicant.is_alone
        self.tables = tables
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
