"""One answer's stream: merging, bounds, and exactly one end."""

from __future__ import annotations

import asyncio

import pytest

from backends.types import Counted, Delta, Failed, Logprob, Progress, ToolCall
from daemon.errors import Cancelled, LoadFailed, WorkerDied
from daemon.residency.answer import AnswerStream


class Ends:
    def __init__(self) -> None:
        self.calls: list[bool] = []

    def __call__(self, tell_worker: bool) -> None:
        self.calls.append(tell_worker)


def delta(text: str = "", **fields: object) -> Delta:
    return Delta(request_id="r", text=text, **fields)  # pyright: ignore[reportArgumentType]


FINISH = delta(finish="stop")


async def test_a_prompt_reader_gets_every_piece_alone():
    stream = AnswerStream("r", Ends())
    for text in ("a", "b"):
        stream.push(delta(text))
        assert await anext(stream) == delta(text)


async def test_unread_pieces_are_merged_and_nothing_is_lost():
    stream = AnswerStream("r", ends := Ends())
    call, entry = ToolCall(name="f"), Logprob(token="a", logprob=-1.0)
    read = Progress(request_id="r", done=1, total=2, cached=1)
    stream.push(read)
    stream.push(delta("a", logprobs=(entry,)))
    stream.push(delta("b", thinking="t", tool_calls=(call,)))
    stream.push(delta("c", tool_calls=(call,), logprobs=(entry,)))
    stream.push(FINISH)
    pieces = [piece async for piece in stream]
    merged = delta("abc", thinking="t", tool_calls=(call, call), logprobs=(entry, entry))
    assert pieces == [read, merged, FINISH]
    assert ends.calls == [False]


async def test_only_the_newest_progress_is_kept():
    stream = AnswerStream("r", Ends())
    for done in (1, 2, 3):
        stream.push(Progress(request_id="r", done=done, total=3))
    assert await anext(stream) == Progress(request_id="r", done=3, total=3)


async def test_a_failure_comes_after_what_was_received_and_only_once():
    stream = AnswerStream("r", ends := Ends())
    stream.push(delta("half"))
    stream.push(Failed(request_id="r", code="load", message="no"))
    stream.push(delta("late"))
    stream.fail(WorkerDied("late"))
    assert await anext(stream) == delta("half")
    with pytest.raises(LoadFailed, match=r"^no$"):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert ends.calls == [False]


async def test_a_single_answer_closes_its_stream():
    stream = AnswerStream("r", Ends())
    stream.push(Counted(request_id="r", tokens=3))
    assert [piece async for piece in stream] == [Counted(request_id="r", tokens=3)]


async def test_too_many_unread_bytes_cancel_the_request():
    stream = AnswerStream("r", ends := Ends(), unread_bytes=1000)
    for _ in range(5):
        stream.push(delta("x" * 300))
    assert ends.calls == [True]
    with pytest.raises(Cancelled, match="1000 bytes"):
        await anext(stream)
    assert "0 bytes unread" in repr(stream)


async def test_logprobs_count_as_unread_bytes():
    stream = AnswerStream("r", ends := Ends(), unread_bytes=10_000)
    top = tuple(Logprob(token="t", logprob=-1.0) for _ in range(20))
    entry = Logprob(token="t", logprob=-1.0, top=top)
    for _ in range(10):
        stream.push(delta("x", logprobs=(entry,)))
    assert ends.calls == [True]


async def test_a_sleeping_reader_is_cancelled_and_a_reading_one_is_not():
    stream = AnswerStream("r", ends := Ends(), unread_seconds=0.05)
    stream.push(delta("a"))
    await anext(stream)
    await asyncio.sleep(0.08)
    stream.check_overdue()
    assert ends.calls == []
    stream.push(delta("b"))
    await asyncio.sleep(0.08)
    stream.check_overdue()
    assert ends.calls == [True]


@pytest.mark.parametrize("pushed", [(), (delta("a"),)])
async def test_closing_early_tells_the_worker_once(pushed: tuple[Delta, ...]):
    ends = Ends()
    async with AnswerStream("r", ends) as stream:
        for piece in pushed:
            stream.push(piece)
    stream.close()
    await stream.aclose()
    assert ends.calls == [True]
    assert [piece async for piece in stream] == []


async def test_closing_after_the_end_tells_nobody():
    stream = AnswerStream("r", ends := Ends())
    stream.push(FINISH)
    stream.close()
    assert ends.calls == [False]


async def test_a_waiting_reader_can_be_cancelled_and_another_can_read_on():
    stream = AnswerStream("r", Ends())
    reader = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    stream.push(delta("a"))
    assert await anext(stream) == delta("a")
