from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from backends.types import Delta, Logprob, ToolCall, Usage
from daemon.api.ollama.answers import ChatWriter, GenerateWriter, Timing, written

USAGE = Usage(prompt_tokens=5, completion_tokens=3, prefill_ns=10, decode_ns=20)


def _builtins(value: Any) -> Any:
    """As a client sees it."""
    return msgspec.json.decode(msgspec.json.encode(value))


async def _deltas(*deltas: Delta) -> AsyncGenerator[Delta, None]:
    for delta in deltas:
        yield delta


def _logprob(token: str) -> Logprob:
    return Logprob(token=token, logprob=-0.5, data=token.encode())


async def test_generate_streams_pieces_and_ends_with_metrics() -> None:
    deltas = _deltas(
        Delta(request_id="r", text="a"),
        Delta(request_id="r"),
        Delta(request_id="r", text="b", finish="stop", usage=USAGE, context_ids=(1, 2)),
    )
    answers = [_builtins(one) async for one in written(deltas, GenerateWriter("M:x", Timing()))]
    assert [answer["response"] for answer in answers] == ["a", "b", ""]
    assert [answer["done"] for answer in answers] == [False, False, True]
    assert all(answer["model"] == "M:x" and answer["created_at"] for answer in answers)
    assert answers[0].keys() == {"model", "created_at", "response", "done"}
    last = answers[-1]
    assert (last["done_reason"], last["context"]) == ("stop", [1, 2])
    assert (last["prompt_eval_count"], last["eval_count"]) == (5, 3)
    durations = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
    assert all(last[name] > 0 for name in durations)


async def test_merging_keeps_every_piece_and_logprob() -> None:
    writer = GenerateWriter("m", Timing())
    deltas = _deltas(
        Delta(request_id="r", text="a", thinking="t", logprobs=(_logprob("a"),)),
        Delta(request_id="r", text="b", logprobs=(_logprob("b"),), finish="length", usage=USAGE),
    )
    merged = _builtins(writer.merged([one async for one in written(deltas, writer)]))
    assert (merged["response"], merged["thinking"]) == ("ab", "t")
    assert [one["token"] for one in merged["logprobs"]] == ["a", "b"]
    assert (merged["done"], merged["done_reason"]) == (True, "length")


async def test_chat_has_messages_and_no_context() -> None:
    writer = ChatWriter("m", Timing())
    deltas = _deltas(
        Delta(request_id="r", text="a"),
        Delta(request_id="r", finish="stop", usage=USAGE, context_ids=(1,)),
    )
    answers = [one async for one in written(deltas, writer)]
    shown = [_builtins(one) for one in answers]
    assert shown[0]["message"] == {"role": "assistant", "content": "a"}
    assert shown[1]["message"] == {"role": "assistant", "content": ""}
    assert "context" not in shown[1]
    assert _builtins(writer.merged(answers))["message"]["content"] == "a"


async def test_tool_calls_have_an_id_an_index_and_ordered_arguments() -> None:
    call = ToolCall(name="f", arguments=b'{"z":1,"a":{"y":2,"b":3}}', index=0)
    deltas = _deltas(Delta(request_id="r", tool_calls=(call,), finish="stop", usage=USAGE))
    answers = [_builtins(one) async for one in written(deltas, ChatWriter("m", Timing()))]
    (sent,) = answers[0]["message"]["tool_calls"]
    assert sent["function"]["index"] == 0
    assert list(sent["function"]["arguments"]) == ["z", "a"]
    assert sent["id"].startswith("call_")
    assert len(sent["id"]) == len("call_") + 8


def test_logprobs_show_bytes_of_parts_of_characters() -> None:
    part = Logprob(
        token="�",
        logprob=-1.0,
        data=b"\xc3",
        top=(Logprob(token="�", logprob=-1.0, data=b"\xc3"), Logprob(token="", logprob=-2.0)),
    )
    writer = GenerateWriter("m", Timing())
    (shown,) = _builtins(writer.piece(Delta(request_id="r", logprobs=(part,))))["logprobs"]
    assert shown["bytes"] == [195]
    assert shown["top_logprobs"] == [
        {"token": "�", "logprob": -1.0, "bytes": [195]},
        {"token": "", "logprob": -2.0},
    ]


def test_loading_and_unloading_have_no_metrics() -> None:
    generate = _builtins(GenerateWriter("m", Timing()).bare("load"))
    assert generate.keys() == {"model", "created_at", "response", "done", "done_reason"}
    chat = _builtins(ChatWriter("m", Timing()).bare("unload"))
    assert chat["message"] == {"role": "assistant", "content": ""}
    assert (chat["done"], chat["done_reason"]) == (True, "unload")


async def test_leaving_closes_the_deltas() -> None:
    closed = False

    async def endless() -> AsyncGenerator[Delta, None]:
        nonlocal closed
        try:
            while True:
                yield Delta(request_id="r", text="a")
        finally:
            closed = True

    answers = written(endless(), GenerateWriter("m", Timing()))
    await anext(answers)
    await answers.aclose()
    assert closed
