from __future__ import annotations

import ctypes
import mmap
import pathlib
import sys

import numpy as np
import pytest

from backends.onnx.row_memory import RowMemory
from backends.onnx.rows import KeyValueRows, Plane, Row, contiguous
from backends.types import EngineError

PLANES = [
    Plane("past_key.0", "present_key.0", 2, 16),
    Plane("past_value.0", "present_value.0", 2, 32),
]
POSITION_BYTES = 2 * (16 + 32) * 4


def make_rows(rows: int = 4, capacity: int = 100, budget_positions: int = 10_000) -> KeyValueRows:
    return KeyValueRows(
        PLANES,
        rows=rows,
        capacity=capacity,
        dtype=np.dtype(np.float32),
        budget_bytes=budget_positions * POSITION_BYTES,
    )


@pytest.fixture
def copying(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on systems that cannot move pages."""
    monkeypatch.setattr(RowMemory, "can_move", property(lambda _: False))


@pytest.fixture(params=["pages", "copies"])
def either_way(request: pytest.FixtureRequest) -> None:
    if request.param == "copies":
        request.getfixturevalue("copying")
    elif sys.platform != "linux":
        pytest.skip("pages cannot be moved here")


def take(rows: KeyValueRows, positions: int = 10) -> Row:
    row = rows.take(positions)
    assert row is not None
    return row


def cells(rows: KeyValueRows, row: Row, plane: int) -> np.ndarray:
    """The memory a binding would be given: float32 [heads, positions, size]."""
    view = list(rows.views(row.index, 1))[plane]
    count = int(np.prod(view.shape))
    pointer = ctypes.cast(view.address, ctypes.POINTER(ctypes.c_float))
    return np.ctypeslib.as_array(pointer, (count,)).reshape(view.shape)[0]


def fill(rows: KeyValueRows, row: Row, positions: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    for plane in range(len(PLANES)):
        target = cells(rows, row, plane)[:, row.length : row.length + positions]
        target[...] = generator.standard_normal(target.shape)
    row.advance(positions)


def content(rows: KeyValueRows, row: Row) -> list[bytes]:
    return [cells(rows, row, plane)[:, : row.length].tobytes() for plane in range(len(PLANES))]


def test_views_of_one_row_lie_inside_the_view_of_all():
    rows = make_rows()
    every, one = list(rows.views(0, 4)), list(rows.views(2, 1))
    for whole, part, plane in zip(every, one, PLANES, strict=True):
        assert whole.shape[0] == 4
        assert part.shape == (1, plane.heads, whole.shape[2], plane.size)
        assert part.address == whole.address + 2 * int(np.prod(part.shape)) * 4
        assert part.address % mmap.PAGESIZE == 0
        assert whole.shape[2] >= rows.capacity


def test_the_lowest_free_row_is_taken_and_comes_back():
    rows = make_rows()
    first, second, third = take(rows), take(rows), take(rows)
    rows.release(second)
    rows.release(second)
    assert [first.index, third.index, take(rows).index, take(rows).index] == [0, 2, 1, 3]
    assert rows.take(1) is None


def test_the_budget_bounds_what_is_promised():
    rows = make_rows(budget_positions=30)
    first = take(rows, 20)
    assert rows.take(11) is None
    assert rows.take(10) is not None
    rows.release(first)
    assert rows.take(20) is not None


def test_touched_bytes_are_whole_pages_of_the_longest_the_row_has_been():
    rows = make_rows(capacity=1000)
    row = take(rows)
    assert rows.touched_bytes() == 0
    fill(rows, row, 65, seed=0)
    # 65 positions of 64 bytes are 2 pages a head, of 128 bytes 3 pages.
    assert rows.touched_bytes() == 2 * (2 + 3) * mmap.PAGESIZE or mmap.PAGESIZE != 4096
    before = rows.touched_bytes()
    row.roll_back(3)
    assert rows.touched_bytes() == before
    rows.park(row)
    assert (rows.touched_bytes(), rows.idle_bytes()) == (0, 2 * (1 + 1) * mmap.PAGESIZE)
    rows.release(row)
    assert rows.touched_bytes() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; elsewhere pages go back lazily")
def test_a_released_row_gives_its_memory_back():
    def resident_bytes() -> int:
        # What `fill` itself allocated may linger in the allocator, and is not what is measured.
        ctypes.CDLL(None).malloc_trim(0)
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * mmap.PAGESIZE

    rows = make_rows(rows=2, capacity=100_000, budget_positions=1_000_000)
    empty = resident_bytes()
    row = take(rows)
    fill(rows, row, 100_000, seed=0)
    size = 100_000 * POSITION_BYTES
    assert resident_bytes() - empty > 0.9 * size
    assert rows.touched_bytes() == pytest.approx(size, rel=0.01)
    rows.release(row)
    assert resident_bytes() - empty < 0.2 * size


def test_rows_are_reserved_without_being_touched():
    rows = make_rows(rows=8, capacity=1 << 20, budget_positions=1 << 24)
    assert rows.touched_bytes() == 0
    fill(rows, take(rows), 5, seed=0)


def test_an_impossible_cache_is_a_memory_error():
    with pytest.raises(EngineError) as caught:
        make_rows(rows=1 << 20, capacity=1 << 30)
    assert caught.value.code == "memory"


def test_contiguous_cuts_at_holes():
    rows = make_rows(rows=6)
    taken = [take(rows) for _ in range(6)]
    active = [taken[5], taken[0], taken[1], taken[3]]
    found = [[row.index for row in run] for run in contiguous(active)]
    assert found == [[0, 1], [3], [5]]
    assert contiguous([]) == []


@pytest.mark.usefixtures("either_way")
def test_compaction_moves_the_content_and_frees_the_source():
    rows = make_rows()
    taken = [take(rows) for _ in range(4)]
    for seed, row in enumerate(taken):
        fill(rows, row, 10 + seed, seed)
    rows.release(taken[0])
    rows.release(taken[2])
    active = [taken[1], taken[3]]
    before = [content(rows, row) for row in active]
    rows.compact(active, budget_bytes=1 << 20)
    assert len(contiguous(active)) == 1
    assert [content(rows, row) for row in active] == before
    others = [take(rows), take(rows)]
    for row in others:
        assert not cells(rows, row, 0).any()  # nothing of the old place shows through
    assert len({row.index for row in (*active, *others)}) == 4


def test_a_single_run_is_left_alone():
    rows = make_rows()
    taken = [take(rows) for _ in range(4)]
    rows.release(taken[0])
    rows.compact(taken[1:], budget_bytes=1 << 20)
    assert [row.index for row in taken[1:]] == [1, 2, 3]


@pytest.mark.usefixtures("copying")
def test_a_long_row_is_moved_over_several_steps_while_it_grows():
    rows = make_rows(rows=3)
    taken = [take(rows) for _ in range(3)]
    fill(rows, taken[0], 5, 0)
    fill(rows, taken[2], 50, 2)
    rows.release(taken[1])
    active = [taken[0], taken[2]]
    steps = 0
    while taken[2].index == 2:
        rows.compact(active, budget_bytes=10 * POSITION_BYTES)
        fill(rows, taken[2], 1, seed=100 + steps)
        steps += 1
        assert taken[2].copied <= 10 * steps
        assert (rows.take(1) is None) is (taken[2].index == 2)  # both places are in use meanwhile
    assert steps == 6
    assert taken[2].index == 1
    expected = make_rows()
    twin = take(expected)
    fill(expected, twin, 50, 2)
    for step in range(steps):
        fill(expected, twin, 1, seed=100 + step)
    assert content(rows, taken[2]) == content(expected, twin)


@pytest.mark.usefixtures("copying")
def test_releasing_a_row_in_the_middle_of_its_move_frees_both_places():
    rows = make_rows(rows=3)
    taken = [take(rows) for _ in range(3)]
    fill(rows, taken[0], 5, 0)
    fill(rows, taken[2], 50, 2)
    rows.release(taken[1])
    rows.compact([taken[0], taken[2]], budget_bytes=10 * POSITION_BYTES)
    assert rows.take(1) is None
    rows.release(taken[2])
    assert [take(rows).index, take(rows).index] == [1, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere idle rows stay where they are")
def test_idle_rows_step_aside_with_what_they_hold():
    rows = make_rows(rows=5)
    taken = [take(rows) for _ in range(4)]
    for seed, row in enumerate(taken):
        fill(rows, row, 10 + seed, seed)
    before = [content(rows, row) for row in taken]
    rows.park(taken[1])
    rows.park(taken[2])
    rows.compact([taken[0], taken[3]], budget_bytes=1)
    assert contiguous([taken[0], taken[3]]) == [[taken[0], taken[3]]]
    assert [content(rows, row) for row in taken] == before
    for row in taken:
        rows.release(row)
    assert rows.touched_bytes() + rows.idle_bytes() == 0
    assert {take(rows).index for _ in range(5)} == set(range(5))


def test_idle_rows_count_with_what_they_hold():
    rows = make_rows(budget_positions=30)
    row = take(rows, 20)
    fill(rows, row, 12, 0)
    rows.park(row)
    assert rows.take(19) is None
    assert rows.has_room(30, beside_idle=False)
    assert take(rows, 18).index == 1
    assert not rows.claim(row, 5, 13)
    assert row.is_idle
    assert rows.claim(row, 5, 12)
    assert (row.length, row.reserved, row.is_idle) == (5, 12, False)


def test_a_prefix_is_copied_in_pieces():
    rows = make_rows()
    source, target = take(rows), take(rows)
    fill(rows, source, 50, 1)
    source.exact_length = 30
    lengths = []
    while target.length < 40:
        rows.copy_prefix(source, target, 40, 12 * POSITION_BYTES)
        lengths.append((target.length, target.exact_length))
    assert lengths == [(12, 12), (24, 24), (36, 30), (40, 30)]
    for plane in range(len(PLANES)):
        wanted = cells(rows, source, plane)[:, :40]
        assert np.array_equal(cells(rows, target, plane)[:, :40], wanted)
    source.roll_back(20)
    rows.copy_prefix(source, target, 50, 1 << 20)
    assert target.length == 40  # what the source no longer has is not taken from it


def test_exact_positions_end_where_a_single_id_was_written():
    row = Row(0, 10)
    row.advance(5)
    row.advance(2)
    row.advance(1)
    row.advance(4)
    assert (row.length, row.exact_length) == (12, 7)
    row.roll_back(6)
    row.advance(1, written=4)
    assert (row.length, row.exact_length) == (7, 7)
