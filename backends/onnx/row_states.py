"""What some blocks carry from run to run beside keys and values: one fixed-size state a row.

A state is all that its block remembers, so it can be neither shortened nor cut: `RowState` in
converters.artifact. The graph reads the rows' own memory and writes a second one, which becomes the
first after the run. Used by `KeyValueRows` only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from backends.onnx.device import Buffer, Device
from converters.artifact import RowState


class StateView(NamedTuple):
    """What a binding needs; the addresses stay good as long as the states."""

    past: str
    present: str
    shape: tuple[int, ...]
    past_address: int
    present_address: int


class StateStore(Protocol):
    """Fp32 states by row; false where the model has none."""

    def __bool__(self) -> bool: ...

    def views(self, first: int, count: int) -> Iterator[StateView]: ...

    def commit(self, first: int, count: int) -> None:
        """A run over these rows is done: what it wrote is what the next one reads."""
        ...

    def clear(self, row: int) -> None:
        """As a row begins."""
        ...

    def move(self, source: int, target: int) -> None: ...


class RowStates:
    """In the machine's own memory."""

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
        for past, present in zip(self._past, self._present, strict=True):
            past[first : first + count] = present[first : first + count]

    def clear(self, row: int) -> None:
        for past in self._past:
            past[row] = 0

    def move(self, source: int, target: int) -> None:
        for past in self._past:
            past[target] = past[source]


class _Group:
    """States of one size, one behind the other, so that a single copy serves them all."""

    def __init__(
        self, states: Sequence[RowState], device: Device, *, rows: int, most_rows: int
    ) -> None:
        self.states = states
        self.size = states[0].nbytes
        self._past_step, self._present_step = rows * self.size, most_rows * self.size
        self._past: Buffer = device.allocate(len(states) * self._past_step)
        self._present: Buffer = device.allocate(len(states) * self._present_step)
        self._device = device

    def past(self, place: int, row: int) -> int:
        return self._past.address + place * self._past_step + row * self.size

    def present(self, place: int) -> int:
        return self._present.address + place * self._present_step

    def commit(self, first: int, count: int) -> None:
        self._device.copy(
            self.present(0),
            self.past(0, first),
            count * self.size,
            lines=len(self.states),
            source_step=self._present_step,
            target_step=self._past_step,
        )

    def move(self, source: int, target: int) -> None:
        self._device.copy(
            self.past(0, source),
            self.past(0, target),
            self.size,
            lines=len(self.states),
            source_step=self._past_step,
            target_step=self._past_step,
        )

    def clear(self, row: int) -> None:
        for place in range(len(self.states)):
            self._device.zero(self.past(place, row), self.size)


class DeviceStates:
    """In a device's memory: what a run reads of every row, what it writes of `most_rows` only.

    Raises EngineError("device") where the device says no.
    """

    def __init__(
        self, states: Sequence[RowState], device: Device, *, rows: int, most_rows: int
    ) -> None:
        sizes = sorted({state.nbytes for state in states})
        self._groups = [
            _Group(
                [state for state in states if state.nbytes == size],
                device,
                rows=rows,
                most_rows=most_rows,
            )
            for size in sizes
        ]

    def __bool__(self) -> bool:
        return bool(self._groups)

    def views(self, first: int, count: int) -> Iterator[StateView]:
        for group in self._groups:
            for place, state in enumerate(group.states):
                addresses = group.past(place, first), group.present(place)
                yield StateView(state.past, state.present, (count, *state.shape), *addresses)

    def commit(self, first: int, count: int) -> None:
        for group in self._groups:
            group.commit(first, count)

    def clear(self, row: int) -> None:
        for group in self._groups:
            group.clear(row)

    def move(self, source: int, target: int) -> None:
        for group in self._groups:
            group.move(source, target)
