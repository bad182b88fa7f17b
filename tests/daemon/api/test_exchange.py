from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from backends.types import Delta, FinishReason, Progress
from daemon.api.exchange import deltas_of, warning_headers
from daemon.errors import Cancelled


async def _events(finish: FinishReason) -> AsyncIterator[Delta | Progress]:
    yield Progress(request_id="r", done=1, total=2)
    yield Delta(request_id="r", text="a")
    yield Delta(request_id="r", text="b", finish=finish)


async def test_progress_is_left_out() -> None:
    assert [delta.text async for delta in deltas_of(_events("stop"))] == ["a", "b"]


async def test_an_answer_that_was_taken_back_is_an_error() -> None:
    found: list[str] = []
    with pytest.raises(Cancelled):
        async for delta in deltas_of(_events("cancelled")):
            found.append(delta.text)
    assert found == ["a", "b"]


def test_warnings_fit_a_header() -> None:
    assert warning_headers(()) == {}
    assert warning_headers(("numa", "ü", "a\nb")) == {"Hearth-Warnings": "ignored options: numa"}
    assert len(warning_headers(["x" * 5000])["Hearth-Warnings"]) < 1100
