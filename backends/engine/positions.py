"""Where each position of a prompt stands for models that rotate by sections: its time, row and column.

Pure arithmetic, for every runtime. Text counts on in all three at once. An image of r × c positions that
begins at p stands at (p, p + row, p + column), and what follows it goes on at p + max(r, c).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from backends.image_span import ImageSpan
from converters.artifact import RopeTable

# (start, rows, columns) of each image that lies in a grid, in order.
Layout = tuple[tuple[int, int, int], ...]


def layout_of(images: Sequence[ImageSpan]) -> Layout:
    """Empty where every position is counted on like an id."""
    return tuple((span.start, span.rows, span.columns) for span in images if span.rows > 0)


def section_positions(layout: Layout, begin: int, end: int) -> NDArray[np.int64]:
    """[3, end - begin]: time, row and column of the positions from `begin` on, in the order of ids."""
    found = np.tile(np.arange(begin, end, dtype=np.int64), (3, 1))
    for start, rows, columns in layout:
        stop, skipped = start + rows * columns, rows * columns - max(rows, columns)
        grid = _in_grid(start, rows, columns) - np.arange(start, stop)
        first, last = np.clip((start, stop), begin, end)
        # What earlier images took from the count is in `found` already.
        found[:, first - begin : last - begin] += grid[:, first - start : last - start]
        found[:, last - begin :] -= skipped
    return found


def _in_grid(start: int, rows: int, columns: int) -> NDArray[np.int64]:
    places = np.arange(rows * columns, dtype=np.int64)
    return start + np.stack((np.zeros_like(places), places // columns, places % columns))


def skipped_positions(layout: Layout) -> int:
    """How much less than its place in the order of ids the position of text behind all images is."""
    return sum(rows * columns - max(rows, columns) for _, rows, columns in layout)


def section_of_pairs(table: RopeTable) -> NDArray[np.int64]:
    """[pairs]: 0, 1 or 2 where the pair turns with the time, the row or the column."""
    pairs = np.arange(len(table.inverse_frequencies))
    if table.sections is None:
        return np.zeros_like(pairs)
    times, rows, columns = table.sections
    if not table.is_interleaved:
        # As ggml counts them: behind the last section the first begins anew.
        return np.resize(np.repeat((0, 1, 2), (times, rows, columns)), len(pairs))
    turn = pairs % 3
    is_row = (turn == 1) & (pairs < 3 * rows)
    is_column = (turn == 2) & (pairs < 3 * columns)
    return np.where(is_row, 1, np.where(is_column, 2, 0))


def turning_positions(table: RopeTable, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n, pairs]: which of `section_positions` [3, n] each pair turns with."""
    return positions[section_of_pairs(table)].T
