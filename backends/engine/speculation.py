"""Prompt look-up: guess the next ids from what was said before, where a run of several ids pays.

Text repeats itself: after the same three ids the same ids often follow. A run over the last id and
some guesses costs little more than a run over one (the weights are read once), and every guess that
equals the id then sampled is one run saved. Guesses never change what is sampled. `Guesser` decides
from what it has seen of this request; an account of runs saved and spent keeps the loss small.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

PATTERN = 3
MOST_GUESSES = 7
# A run over n ids in runs over one, until this machine has shown its own (onnx.md, appendix B).
TYPICAL_COSTS = (1.0, 1.18, 1.59, 1.91, 2.25, 2.6, 2.95, 3.3)
MIN_GAIN = 1.05
# What guessing may cost at most: so many runs at first, and this part of the runs without guesses.
_FIRST_CREDIT = 1.0
_CREDIT_PER_RUN = 0.02
_MOST_CREDIT = 3.0
_FIRST_HIT_RATE = 0.3
_NEW_HIT_PART = 0.15
_NEW_COST_PART = 0.2


def _is_text(token_id: int) -> bool:
    return token_id >= 0


class PromptLookup:
    """All ids of one request, and what followed the last time its latest ones were there."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # pattern → place of what followed it last
        self._place = -1
        for token_id in ids:
            self.push(token_id)

    def push(self, token_id: int) -> None:
        goes_on = self._place >= 0 and self._ids[self._place] == token_id
        self._ids.append(token_id)
        pattern = tuple(self._ids[-PATTERN:])
        known = self._after.get(pattern, -1) if len(pattern) == PATTERN else -1
        self._after[pattern] = len(self._ids)
        self._place = self._place + 1 if goes_on else known

    def ahead(self, count: int) -> list[int]:
        """At most `count` ids that may come next; [] where nothing like this was there before.

        No id of an image ever comes next, so what was said before ends at one.
        """
        if self._place < 0:
            return []
        ahead = self._ids[self._place : self._place + count]
        return ahead if min(ahead, default=0) >= 0 else list(itertools.takewhile(_is_text, ahead))


class RunCosts:
    """What runs over n ids of one row cost on this machine, in runs over one."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def saw(self, ids: int, seconds: float) -> None:
        known = self._seconds.get(ids)
        new = seconds if known is None else known + _NEW_COST_PART * (seconds - known)
        self._seconds[ids] = new

    def of(self, ids: int) -> float:
        single, several = self._seconds.get(1), self._seconds.get(ids)
        if single is None or several is None:
            return TYPICAL_COSTS[ids - 1]
        return several / single


def plan_guesses(known: int, hit_rate: float, costs: RunCosts) -> int:
    """How many of `known` guesses to run with the last id: 0 unless more is gained than MIN_GAIN.

    With a guess right at `hit_rate`, d of them give 1 + r + r**2 + … + r**d ids a run.
    """
    best, gain, expected = 0, MIN_GAIN, 1.0
    for count in range(1, min(known, MOST_GUESSES) + 1):
        expected += hit_rate**count
        if expected / costs.of(count + 1) > gain:
            best, gain = count, expected / costs.of(count + 1)
    return best


class Guesser:
    """The guesses of one request, and how good they have been."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._lookup = PromptLookup(ids)
        self._hit_rate = _FIRST_HIT_RATE
        self._credit = _FIRST_CREDIT

    def guesses(self, costs: RunCosts, most: int) -> list[int]:
        """Ids to run behind the last one, at most `most`."""
        ahead = self._lookup.ahead(min(most, MOST_GUESSES))
        if not ahead or self._credit <= 0:
            return []
        return ahead[: plan_guesses(len(ahead), self._hit_rate, costs)]

    def saw(self, sampled: Sequence[int], guessed: int, costs: RunCosts) -> None:
        """One run over the last id and `guessed` guesses gave the ids `sampled`."""
        for token_id in sampled:
            for guess in self._lookup.ahead(1):
                self._hit_rate += _NEW_HIT_PART * ((guess == token_id) - self._hit_rate)
            self._lookup.push(token_id)
        saved = len(sampled) - costs.of(guessed + 1) if guessed else _CREDIT_PER_RUN
        self._credit = min(self._credit + saved, _MOST_CREDIT)
