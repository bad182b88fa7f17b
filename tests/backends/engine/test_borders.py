"""Borders of prompts with images, against a search through all places."""

from __future__ import annotations

import random

import pytest

from backends.engine.borders import (
    border_after,
    border_before,
    last_fed,
    last_grid_border,
    next_grid_border,
)
from backends.image_span import ImageSpan

LENGTH, STEP = 60, 8


def spans_of(seed: int) -> list[ImageSpan]:
    drawn, place, spans = random.Random(seed), 0, []
    while place < LENGTH:
        length = drawn.randrange(1, 20)
        is_bidirectional = drawn.random() < 0.5
        if drawn.random() < 0.6:
            spans.append(
                ImageSpan(
                    start=place, length=length, embeddings=b"", is_bidirectional=is_bidirectional
                )
            )
        place += length
    return spans


def borders_of(spans: list[ImageSpan]) -> list[int]:
    inside = {
        place
        for span in spans
        if span.is_bidirectional
        for place in range(span.start + 1, span.start + span.length)
    }
    return [place for place in range(LENGTH + 40) if place not in inside]


@pytest.mark.parametrize("seed", range(40))
def test_borders_are_the_nearest(seed: int):
    spans = spans_of(seed)
    borders = borders_of(spans)
    grid = sorted({min(b for b in borders if b >= at) for at in range(0, LENGTH + 30, STEP)})
    for place in range(LENGTH):
        assert border_before(spans, place) == max(b for b in borders if b <= place)
        assert border_after(spans, place) == min(b for b in borders if b >= place)
        assert last_grid_border(spans, place, STEP) == max(b for b in grid if b <= place)
        assert next_grid_border(spans, place, STEP) == min(b for b in grid if b > place)


def test_a_prompt_that_ends_with_an_image_is_fed_with_all_of_it():
    span = ImageSpan(start=4, length=6, embeddings=b"", is_bidirectional=True)
    assert last_fed([span], 10) == 6
    assert last_fed([span], 11) == 1
    assert last_fed([], 10) == 1
    causal = ImageSpan(start=4, length=6, embeddings=b"")
    assert last_fed([causal], 10) == 1
