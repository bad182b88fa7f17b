"""What some blocks carry from run to run beside keys and values: one fixed-size state a row.

A state is all that its block remembers, so it can be neither shortened nor cut: `RowState` in
converters.artifact. The graph reads the rows' own memory and writes a second one, which becomes the
first after the run. Used by `KeyValueRows` only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from converters.artifact import RowState


class StateView(NamedTuple):
    """What a binding needs; the addresses stay good as long as the states."""

    past: str
    present: str
    shape: tuple[int, ...]
    past_address: int
    present_address: int


class RowStates:
    def __init__(self, states: Sequence[RowState], rows: int) -> None:
        self._states = tuple(states)
        self._past = [np.zeros((rows, *state.shape), np.float32) for state in states]
        self._present = [np.zeros_like(past) for past in self._past]

    def __bool__(self) -> bool:
        return bool(self._states)

    def views(self, first: int, count: int) -> Iterator[StateView]:
        for state, past, present in zip(self._states, self._past, self._present, strict=True):
            shape = (count, *state.shape)
            addresses = [array[first : first + count].ctypes.data for array in (past, present)]
            yield StateView(state.past, state.present, shape, *addresses)

    def commit(self, first: int, count: int) -> None:
        """A run over these rows is done: what it wrote is what the next one reads."""
        for past, present in zip(self._past, self._present, strict=True):
            past[first : first + count] = present[first : first + count]

    def clear(self, row: int) -> None:
        """As a row begins."""
        for past in self._past:
            past[row] = 0

    def move(self, source: int, target: int) -> None:
        for past in self._past:
            past[target] = past[source]
