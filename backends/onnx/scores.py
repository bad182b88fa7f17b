"""What one run says of the positions that were wanted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.engine.filters import likeliest


class Scores(NamedTuple):
    """Of each wanted position, likeliest first; views that the next run overwrites.

    `hidden` is what the head is given, and stays zero where the graph does not say it.
    """

    logits: NDArray[np.float32]
    values: NDArray[np.float32]
    ids: NDArray[np.int64]
    lse: NDArray[np.float32]
    hidden: NDArray[np.float32]

    def first(self, count: int) -> Scores:
        return Scores(
            self.logits[:count],
            self.values[:count],
            self.ids[:count],
            self.lse[:count],
            self.hidden[:count],
        )


def raw_logprobs(
    scores: Scores, place: int, token_id: int, wanted: int
) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    """Natural-log probabilities before any filter: of the chosen id and of the likeliest ones."""
    if wanted < 0:
        return None, ()
    lse = float(scores.lse[place])
    logits = scores.logits[place]
    ids, values = scores.ids[place][:wanted], scores.values[place][:wanted]
    if wanted > ids.size:
        ids, values = likeliest(logits, wanted)
    top = tuple((int(i), float(v) - lse) for i, v in zip(ids, values, strict=True))
    return float(logits[token_id]) - lse, top
