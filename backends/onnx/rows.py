"""The KV cache: rows of one engine, in reserved memory that becomes real only where it is touched.

All access to keys and values goes through this file: a `Row` is the only handle the engine has.
Each plane (one block's keys or values) is [rows, kv heads, capacity, head size]; rows lie side by
side, so that n neighbouring rows are one tensor and one row is a view of it. A row is free, active
(a request may write to it up to what it was promised) or idle (kept for whoever begins alike).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from backends.onnx.planes import HostPlanes, Plane, PlaneStore
from backends.onnx.row_states import RowStates, StateStore
from converters.artifact import RowState


class PlaneView(NamedTuple):
    """What a binding needs to hand some rows of a plane to the runtime, without a copy."""

    past: str
    present: str
    shape: tuple[int, int, int, int]
    address: int


class Row:
    """A taken row: where it is and how many positions hold something.

    `exact_length` leading positions were written by runs of two ids and more, whose numbers do not
    depend on how the ids were cut into runs; a run of one id rounds differently.
    """

    __slots__ = (
        "copied",
        "exact_length",
        "index",
        "is_idle",
        "length",
        "peak",
        "reserved",
        "target",
    )

    def __init__(self, index: int, reserved: int) -> None:
        self.index = index
        self.reserved = reserved
        self.is_idle = False
        self.length = 0
        self.exact_length = 0
        self.peak = 0
        self.target = -1  # where compaction is copying it to
        self.copied = 0

    def advance(self, positions: int, *, written: int = 0) -> None:
        """A run has written `positions` more that count, of `written` (0: the same)."""
        if self.exact_length == self.length and max(positions, written) > 1:
            self.exact_length += positions
        self.length += positions
        self.peak = max(self.peak, self.length)

    def roll_back(self, length: int) -> None:
        """Forgets what lies behind `length`; what a move has copied of it is copied again."""
        self.length = min(self.length, length)
        self.exact_length = min(self.exact_length, self.length)
        self.copied = min(self.copied, self.length)


class KeyValueRows:
    """Owns the memory and says which rows are free.

    `capacity` is the most positions a row can hold, `budget_bytes` bounds what all taken rows may
    come to touch. With `states`, rows can only go on or begin anew. Raises EngineError("memory")
    where the address space cannot be had.
    """

    def __init__(
        self,
        planes: Sequence[Plane],
        *,
        rows: int,
        capacity: int,
        dtype: np.dtype,
        budget_bytes: int,
        states: Sequence[RowState] = (),
        store: PlaneStore | None = None,
        state_store: StateStore | None = None,
    ) -> None:
        """`store`: where keys and values lie, the machine's own memory if it is not given.

        `state_store`: the same for `states`, which need not be given then.
        """
        self.count = rows
        self.states: StateStore = state_store or RowStates(states, rows)
        self.capacity = capacity
        self._planes = tuple(planes)
        self._budget_bytes = budget_bytes
        self.position_bytes = max(1, sum(p.heads * p.size for p in self._planes) * dtype.itemsize)
        self._store: PlaneStore = store or HostPlanes(
            planes, rows=rows, capacity=capacity, dtype=dtype
        )
        self._taken: dict[int, Row] = {}
        self._free = set(range(rows))

    # ---- who has which row ----

    def has_room(self, positions: int, *, beside_idle: bool = True) -> bool:
        """Whether the budget allows to promise `positions` more; idle rows may be left out."""
        held = sum(
            row.length if row.is_idle else row.reserved
            for row in self._taken.values()
            if beside_idle or not row.is_idle
        )
        return (held + positions) * self.position_bytes <= self._budget_bytes

    @property
    def is_quiet(self) -> bool:
        """No request has a row."""
        return all(row.is_idle for row in self._taken.values())

    def take(self, positions: int) -> Row | None:
        """The lowest free row, with room promised for `positions`; None when that must wait."""
        if not self._free or not self.has_room(positions):
            return None
        row = Row(min(self._free), positions)
        self.states.clear(row.index)
        self._free.remove(row.index)
        self._taken[row.index] = row
        return row

    def park(self, row: Row) -> None:
        """An active row becomes idle: it keeps what it holds and is promised nothing more."""
        row.is_idle, row.reserved = True, 0
        self._give_back_tail(row)

    def claim(self, row: Row, length: int, positions: int) -> bool:
        """An idle row becomes active with its first `length` positions; False: that must wait."""
        if not self.has_room(positions - row.length):
            return False
        self.roll_back(row, length)
        row.is_idle, row.reserved = False, positions
        self._give_back_tail(row)
        return True

    def roll_back(self, row: Row, length: int) -> None:
        """Forgets what lies behind `length`: all or nothing where rows have states."""
        if self.states and length < row.length:
            length = 0
            self.states.clear(row.index)
        row.roll_back(length)

    def release(self, row: Row) -> None:
        """Gives the row's memory back. The handle is dead afterwards; twice is a no-op."""
        if self._taken.get(row.index) is not row:
            return
        del self._taken[row.index]
        self._vacate(row.index)
        if row.target >= 0:
            self._vacate(row.target)

    def _vacate(self, index: int) -> None:
        self._store.give_back(index, 0, self._store.stride)
        self._free.add(index)

    def _give_back_tail(self, row: Row) -> None:
        """The pages behind the row's length that hold something."""
        self._store.give_back(row.index, row.length, row.peak)
        row.peak = row.length

    def reserve(self, positions: int) -> bool:
        """Before a run that makes a row so long. True: every row lies elsewhere now."""
        held: dict[int, int] = {}
        for row in self._taken.values():
            held[row.index] = row.peak
            if row.target >= 0:
                held[row.target] = row.copied
        return self._store.grow(positions, held)

    @property
    def stride(self) -> int:
        """Positions that a row can hold where it lies now."""
        return self._store.stride

    def views(self, first: int, count: int) -> Iterator[PlaneView]:
        """Rows `first` to `first + count - 1` of every plane."""
        for index, plane in enumerate(self._planes):
            shape = (count, plane.heads, self._store.stride, plane.size)
            yield PlaneView(plane.past, plane.present, shape, self._store.address(index, first))

    def touched_bytes(self) -> int:
        """Memory behind the active rows, counted in whole pages."""
        return self._touched_by(is_idle=False)

    def idle_bytes(self) -> int:
        """The same behind the idle ones."""
        return self._touched_by(is_idle=True)

    def _touched_by(self, *, is_idle: bool) -> int:
        rows = [row for row in self._taken.values() if row.is_idle is is_idle]
        touched = self._store.touched
        return sum(touched(row.peak) + touched(row.copied) for row in rows)

    # ---- moving what rows hold ----

    def copy_prefix(self, source: Row, target: Row, length: int, budget_bytes: int) -> None:
        """Copies what `target` lacks of the first `length` positions of `source`, within the budget."""
        begin = target.length
        end = min(length, source.length, begin + max(1, budget_bytes // self.position_bytes))
        if end > begin:
            self._store.copy(source.index, target.index, begin, end)
        is_exact = target.exact_length == begin
        target.length = max(begin, end)
        target.peak = max(target.peak, end)
        if is_exact:
            target.exact_length = max(begin, min(end, source.exact_length))

    def read_block(self, row: Row, begin: int, end: int) -> bytes:
        """Positions `begin` to `end` of every plane, one after the other: [heads, positions, size]."""
        return self._store.read(row.index, begin, end)

    def write_block(self, row: Row, begin: int, data: bytes, positions: int) -> None:
        """The first `positions` of what `read_block` gave, to where `begin` is. Changes no length."""
        self._store.write(row.index, begin, data, positions)

    def compact(self, active: Sequence[Row], budget_bytes: int) -> None:
        """Moves active rows downwards until they are neighbours.

        Where pages can be moved nothing is copied, and idle rows step aside. Elsewhere rows move
        into holes only, at most `budget_bytes` in one call: a row too long for that is copied over
        several and stays where it is until the copy is whole; meanwhile it only grows.
        """
        if self._store.can_move:
            self._compact_pages(active)
            return
        positions = max(1, budget_bytes // self.position_bytes)
        while positions > 0 and len(contiguous(active)) > 1:
            row = max(active, key=lambda row: row.index)
            if row.target < 0 and not self._begin_move(row):
                return
            copied = min(positions, row.length - row.copied)
            self._copy(row, copied)
            positions -= max(copied, 1)

    def _compact_pages(self, active: Sequence[Row]) -> None:
        while len(contiguous(active)) > 1:
            indexes = {row.index for row in active}
            hole = next(i for i in range(min(indexes), self.count) if i not in indexes)
            in_the_way = self._taken.get(hole)
            if in_the_way is not None:
                refuge = max(self._free, default=-1)
                if refuge < 0:
                    return
                self._move_pages(in_the_way, refuge)
            self._move_pages(max(active, key=lambda row: row.index), hole)

    def _move_pages(self, row: Row, target: int) -> None:
        self._store.move(row.index, target)
        self._settle(row, target)

    def _settle(self, row: Row, target: int) -> None:
        """The row's content is at `target` now, and its place is free."""
        self.states.move(row.index, target)
        self._free.discard(target)
        self._free.add(row.index)
        del self._taken[row.index]
        self._taken[target] = row
        row.index = target

    def _begin_move(self, row: Row) -> bool:
        target = min(self._free, default=row.index)
        if target >= row.index:
            return False
        self._free.remove(target)
        row.target, row.copied = target, 0
        return True

    def _copy(self, row: Row, positions: int) -> None:
        end = row.copied + positions
        if positions:
            self._store.copy(row.index, row.target, row.copied, end)
        row.copied = end
        if end >= row.length:
            self._vacate(row.index)
            self._settle(row, row.target)
            row.target, row.copied, row.peak = -1, 0, row.length

    def close(self) -> None:
        """The memory comes back once nothing points into it."""
        self._taken.clear()
        self._free.clear()
        self._store.close()


def contiguous(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows by index, cut where neighbours are missing."""
    runs: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: row.index):
        if runs and runs[-1][-1].index + 1 == row.index:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs
