"""Deltas to events, and events to a whole message, without any HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest

from backends.types import Delta, FinishReason, Progress, ToolCall, Usage
from daemon.api.anthropic.answers import MessageWriter, whole_message, written
from daemon.api.anthropic.wire import StreamEvent
from daemon.errors import Cancelled

USAGE = Usage(prompt_tokens=9, cached_tokens=4, completion_tokens=3)
CALL = ToolCall(id="call_1", name="f", arguments=b'{"z":"\xc3\xb6","a":{"y":1,"b":2}}')


def said(text: str = "", **fields: Any) -> Delta:
    return Delta(request_id="r", text=text, **fields)


def finished(reason: FinishReason = "stop", **fields: Any) -> Delta:
    return Delta(request_id="r", finish=reason, usage=USAGE, **fields)


async def _answers(*answers: Delta | Progress) -> AsyncGenerator[Delta | Progress, None]:
    for answer in answers:
        yield answer


async def events_of(*answers: Delta | Progress, **writer: Any) -> list[StreamEvent]:
    return [one async for one in written(_answers(*answers), MessageWriter("M:x", **writer))]


def plain(value: Any) -> Any:
    """As a client sees it."""
    return msgspec.json.decode(msgspec.json.encode(value))


def outline(events: list[StreamEvent]) -> list[str]:
    """Types and block numbers, and nothing else."""
    shown = [plain(event) for event in events]
    return [f"{one['type']} {one['index']}" if "index" in one else one["type"] for one in shown]


async def test_thoughts_text_and_calls_are_blocks_in_order() -> None:
    events = await events_of(
        said("Well. ", thinking="hm"), said("So:", tool_calls=(CALL, CALL)), finished()
    )
    assert outline(events) == [
        "message_start",
        *("content_block_start 0", "content_block_delta 0", "content_block_stop 0"),
        *("content_block_start 1", "content_block_delta 1", "content_block_delta 1"),
        "content_block_stop 1",
        *("content_block_start 2", "content_block_delta 2", "content_block_stop 2"),
        *("content_block_start 3", "content_block_delta 3", "content_block_stop 3"),
        *("message_delta", "message_stop"),
    ]
    content = plain(whole_message(events))["content"]
    assert content[:2] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "Well. So:"},
    ]
    ids = {block["id"] for block in content[2:]}
    assert len(ids) == 2
    assert all(one.startswith("toolu_") and len(one) == 30 for one in ids)
    assert content[2]["input"] == {"z": "ö", "a": {"y": 1, "b": 2}}
    assert list(content[2]["input"]) == ["z", "a"]


async def test_thoughts_behind_text_are_not_lost() -> None:
    events = await events_of(said("a"), said(thinking="t"), said("b"), finished())
    content = plain(whole_message(events))["content"]
    assert [block["type"] for block in content] == ["text", "thinking", "text"]


async def test_the_start_says_what_the_prompt_costs_and_then_come_pings() -> None:
    first = Progress(request_id="r", done=5, total=9, cached=4)
    second = Progress(request_id="r", done=9, total=9, cached=4)
    events = await events_of(first, second, said("a"), finished())
    usage = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 4, "input_tokens": 5}
    start = plain(events[0])["message"]
    assert start["usage"] == usage | {"output_tokens": 0}
    assert (start["content"], start["stop_reason"]) == ([], None)
    assert plain(events[1]) == {"type": "ping"}
    assert plain(events[-2])["usage"] == usage | {"output_tokens": 3}
    assert plain(whole_message(events))["usage"] == usage | {"output_tokens": 3}


@pytest.mark.parametrize(
    ("closing", "reason", "sequence"),
    [
        (finished(), "end_turn", None),
        (finished("length"), "max_tokens", None),
        (finished(stop_text="END"), "stop_sequence", "END"),
        (finished("length", stop_text="END"), "stop_sequence", "END"),
        (finished(stop_text="<|of the model's own|>"), "end_turn", None),
        (finished(tool_calls=(CALL,)), "tool_use", None),
        (finished("length", tool_calls=(CALL,)), "tool_use", None),
    ],
)
async def test_stop_reasons(closing: Delta, reason: str, sequence: str | None) -> None:
    events = await events_of(said("a"), closing, stop_sequences=("END",))
    ending = plain(events[-2])["delta"]
    assert ending == {"stop_reason": reason, "stop_sequence": sequence}
    message = plain(whole_message(events))
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)


@pytest.mark.parametrize(
    ("deltas", "texts"),
    [
        ((said(" \n"), said(tool_calls=(CALL,)), said("\n"), said(tool_calls=(CALL,))), []),
        ((said(tool_calls=(CALL,)), said("\n"), said("so")), ["\nso"]),
        ((said(" "), said(" a "), said(" ")), ["  a  "]),
        ((said(" "), said("\n")), [" \n"]),
        ((), []),
    ],
)
async def test_no_block_begins_as_white_space_alone(
    deltas: tuple[Delta, ...], texts: list[str]
) -> None:
    content = plain(whole_message(await events_of(*deltas, finished())))["content"]
    assert [block["text"] for block in content if block["type"] == "text"] == texts


async def test_an_empty_answer_has_an_empty_list() -> None:
    events = await events_of(finished())
    assert outline(events) == ["message_start", "message_delta", "message_stop"]
    assert plain(whole_message(events))["content"] == []


async def test_thoughts_can_be_hidden() -> None:
    events = await events_of(said("a", thinking="secret"), finished(), hides_thinking=True)
    content = plain(whole_message(events))["content"]
    assert content[0] == {"type": "thinking", "thinking": "", "signature": ""}
    assert "secret" not in str(plain(events))


async def test_an_answer_that_was_taken_back_is_an_error() -> None:
    with pytest.raises(Cancelled):
        await events_of(said("a"), finished("cancelled"))


async def test_leaving_closes_the_deltas() -> None:
    closed = False

    async def endless() -> AsyncGenerator[Delta | Progress, None]:
        nonlocal closed
        try:
            while True:
                yield said("a")
        finally:
            closed = True

    events = written(endless(), MessageWriter("m"))
    await anext(events)
    await events.aclose()
    assert closed
