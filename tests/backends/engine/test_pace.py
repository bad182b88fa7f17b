from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.engine.pace import MAX_CHUNK, MIN_CHUNK, Pace, plan_chunk


@pytest.mark.parametrize(
    ("remaining", "ids_per_second", "seconds", "expected"),
    [
        (1000, 0.0, 0.25, 32),  # nothing measured yet
        (1000, 1000.0, 0.25, 224),
        (1000, 1e6, 0.25, 512),
        (1000, 10.0, 0.25, 32),
        (20, 1000.0, 0.25, 20),
        (33, 10.0, 0.25, 31),  # not 32 and then 1
        (34, 10.0, 0.25, 32),
        (1, 1000.0, 1.0, 1),
    ],
)
def test_chunk(remaining: int, ids_per_second: float, seconds: float, expected: int):
    assert plan_chunk(remaining, ids_per_second, seconds) == expected


@given(st.integers(1, 5000), st.floats(0, 1e5), st.floats(0, 1))
def test_chunks_cover_the_prompt_and_the_last_has_two_ids(
    remaining: int, rate: float, seconds: float
):
    chunks = []
    left = remaining
    while left:
        chunks.append(plan_chunk(left, rate, seconds))
        left -= chunks[-1]
    assert sum(chunks) == remaining
    assert max(chunks) <= MAX_CHUNK
    assert min(chunks) >= 2 or remaining == 1


def test_the_gap_counts_the_decode_run_and_a_slowdown_at_once():
    pace = Pace()
    pace.saw_prefill(64, 0.1)
    alone, beside = (pace.chunk(10_000, is_decoding=flag) for flag in (False, True))
    assert alone > beside > MIN_CHUNK
    pace.saw_decode(0.2)
    assert pace.chunk(10_000, is_decoding=True) < beside
    pace.saw_prefill(64, 0.6)
    assert pace.chunk(10_000, is_decoding=True) == MIN_CHUNK
    pace.saw_prefill(3, 0.0001)  # tells nothing
    assert pace.chunk(10_000, is_decoding=True) == MIN_CHUNK
