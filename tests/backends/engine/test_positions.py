from __future__ import annotations

import random

import numpy as np
import pytest

from backends.engine.positions import (
    Layout,
    layout_of,
    section_of_pairs,
    section_positions,
    skipped_positions,
    turning_positions,
)
from backends.image_span import ImageSpan
from converters.artifact import RopeTable


def counted(layout: Layout, length: int) -> list[tuple[int, int, int]]:
    """One position after the other."""
    found: list[tuple[int, int, int]] = []
    images = {start: (rows, columns) for start, rows, columns in layout}
    position = 0
    while len(found) < length:
        rows, columns = images.get(len(found), (0, 0))
        if rows == 0:
            found.append((position, position, position))
            position += 1
            continue
        for row in range(rows):
            found += [(position, position + row, position + column) for column in range(columns)]
        position += max(rows, columns)
    return found[:length]


LAYOUTS: list[Layout] = [
    (),
    ((0, 1, 1),),
    ((3, 2, 5),),
    ((0, 4, 3), (12, 1, 6), (30, 7, 2)),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_positions_are_those_of_counting(layout: Layout):
    expected = counted(layout, 60)
    for begin, end in [(0, 60), (4, 5), (13, 31), (50, 60), (2, 2)]:
        assert section_positions(layout, begin, end).T.tolist() == [
            list(each) for each in expected[begin:end]
        ]
    assert expected[-1][0] == 59 - skipped_positions(layout)


@pytest.mark.parametrize("seed", range(5))
def test_positions_of_any_images(seed: int):
    generator = random.Random(seed)
    layout, place = [], 0
    for _ in range(generator.randint(1, 6)):
        rows, columns = generator.randint(1, 6), generator.randint(1, 6)
        place += generator.randint(0, 4)
        layout.append((place, rows, columns))
        place += rows * columns
    expected = [list(each) for each in counted(tuple(layout), place + 9)]
    assert section_positions(tuple(layout), 0, place + 9).T.tolist() == expected


def test_an_image_of_one_position_counts_as_an_id():
    """And so does one column: it goes on by its rows, whose time stands still."""
    assert (section_positions(((4, 1, 1),), 0, 9) == np.arange(9)).all()
    assert section_positions(((0, 3, 1),), 0, 4).tolist() == [
        [0, 0, 0, 3],
        [0, 1, 2, 3],
        [0, 0, 0, 3],
    ]


def test_images_without_a_grid_are_counted_on():
    spans = [
        ImageSpan(start=2, length=3, embeddings=b""),
        ImageSpan(start=9, length=4, embeddings=b"", rows=2, columns=2),
    ]
    assert layout_of(spans) == ((9, 2, 2),)


def table(
    pairs: int, sections: tuple[int, int, int] | None, *, is_interleaved: bool = False
) -> RopeTable:
    return RopeTable(
        inverse_frequencies=(1.0,) * pairs, sections=sections, is_interleaved=is_interleaved
    )


def test_which_pair_turns_with_what():
    assert section_of_pairs(table(4, None)).tolist() == [0, 0, 0, 0]
    assert section_of_pairs(table(8, (2, 3, 3))).tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert section_of_pairs(table(8, (4, 2, 2), is_interleaved=True)).tolist() == [
        0, 1, 2, 0, 1, 2, 0, 0,
    ]  # fmt: skip


def test_a_pair_takes_its_own_section():
    positions = section_positions(((1, 2, 2),), 0, 6)
    found = turning_positions(table(3, (1, 1, 1)), positions)
    assert found.tolist() == [[0, 0, 0], [1, 1, 1], [1, 1, 2], [1, 2, 1], [1, 2, 2], [3, 3, 3]]
