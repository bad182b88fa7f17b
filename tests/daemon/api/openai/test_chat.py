"""`/v1/chat/completions` with the official client, and with raw requests where bytes matter."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.daemon.api.openai.rigs import TIME, WEATHER, ask, events
from tests.daemon.api.rig import Rig

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


async def test_a_whole_answer(rig: Rig, client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="plain", messages=ask("hi"))
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "Hello wörld.")
    assert (choice.finish_reason, choice.index) == ("stop", 0)
    assert (answer.object, answer.model) == ("chat.completion", "plain")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    raw = await rig.post("/v1/chat/completions", model="plain", messages=ask("hi"))
    assert raw.headers["content-type"].startswith("application/json")
    assert raw.json()["choices"][0]["message"] == {"role": "assistant", "content": "Hello wörld."}
    assert raw.json()["id"] != answer.id


async def test_a_stream(rig: Rig) -> None:
    answer = await rig.post("/v1/chat/completions", model="plain", messages=ask("hi"), stream=True)
    assert answer.headers["content-type"] == "text/event-stream"
    *chunks, end = events(answer.text)
    assert end == "[DONE]"
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    assert all("role" not in delta for delta in deltas[1:])
    assert "".join(delta.get("content", "") for delta in deltas) == "Hello wörld."
    assert deltas[-1] == {}
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert all("usage" not in chunk for chunk in chunks)


async def test_usage_at_the_end_of_a_stream(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model="plain", messages=ask("hi"))
    stream = await client.chat.completions.create(
        model="plain", messages=ask("hi"), stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_an_answer_without_text_has_a_first_chunk(rig: Rig) -> None:
    body: dict[str, Any] = {"model": "plain", "messages": ask("hi"), "max_tokens": 0}
    *chunks, _ = events((await rig.post("/v1/chat/completions", stream=True, **body)).text)
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {},
    ]


@pytest.mark.parametrize(
    ("limits", "tokens"),
    [
        ({"max_tokens": 3}, 3),
        ({"max_completion_tokens": 4}, 4),
        ({"max_tokens": 3, "max_completion_tokens": 4}, 4),
    ],
)
async def test_limits(client: openai.AsyncOpenAI, limits: dict[str, Any], tokens: int) -> None:
    answer = await client.chat.completions.create(model="plain", messages=ask("hi"), **limits)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == tokens


@pytest.mark.parametrize("stop", ["two", ["x", "two"]])
async def test_stop(client: openai.AsyncOpenAI, stop: Any) -> None:
    answer = await client.chat.completions.create(model="plain", messages=ask("count"), stop=stop)
    assert answer.choices[0].message.content == "one "
    assert answer.choices[0].finish_reason == "stop"


async def test_thoughts_and_tool_calls(client: openai.AsyncOpenAI) -> None:
    messages = ask("weather")
    body: dict[str, Any] = {"model": "able", "tools": [WEATHER, TIME]}
    first = await client.chat.completions.create(messages=messages, **body)
    (choice,) = first.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    assert choice.message.model_extra == {"reasoning": "hm"}
    assert first.usage is not None and first.usage.completion_tokens_details is not None
    thoughts = first.usage.completion_tokens_details.reasoning_tokens
    assert thoughts is not None and 0 < thoughts < first.usage.completion_tokens
    assert choice.message.tool_calls is not None
    called: list[Any] = list(choice.message.tool_calls)
    assert [call.function.name for call in called] == ["get_weather", "get_time"]
    assert called[0].function.arguments == '{"z":"Köln","a":1}'
    result = {"role": "tool", "tool_call_id": called[0].id, "content": "11"}
    messages += [choice.message, result]
    second = await client.chat.completions.create(messages=messages, **body)
    assert second.choices[0].message.content == "It is 11 degrees."


async def test_streamed_thoughts_and_tool_calls(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="able", messages=ask("weather"), tools=[WEATHER, TIME], stream=True
    )
    chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta for chunk in chunks]
    thoughts = [(delta.model_extra or {}).get("reasoning", "") for delta in deltas]
    assert "".join(thoughts) == "hm"
    assert all(
        not delta.content for delta, thought in zip(deltas, thoughts, strict=True) if thought
    )
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert [call.index for call in calls] == [0, 1]
    assert calls[0].function is not None
    assert calls[0].function.arguments == '{"z":"Köln","a":1}'
    assert "".join(delta.content or "" for delta in deltas) == "Let me see."
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


async def test_the_clients_own_stream_of_events(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.stream(
        model="able", messages=ask("weather"), tools=[WEATHER, TIME]
    ) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    assert [call.function.name for call in final.choices[0].message.tool_calls or ()] == [
        "get_weather",
        "get_time",
    ]


async def test_one_call_where_only_one_is_wanted(client: openai.AsyncOpenAI) -> None:
    body: dict[str, Any] = {"model": "able", "messages": ask("weather"), "tools": [WEATHER, TIME]}
    whole = await client.chat.completions.create(**body, parallel_tool_calls=False)
    assert len(whole.choices[0].message.tool_calls or ()) == 1
    stream = await client.chat.completions.create(**body, parallel_tool_calls=False, stream=True)
    calls = [c async for chunk in stream for c in chunk.choices[0].delta.tool_calls or ()]
    assert len(calls) == 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_time"}}]
)
async def test_a_required_call_is_the_whole_answer(rig: Rig, choice: Any, stream: bool) -> None:
    """The script says a word before its call, which the grammar leaves out."""
    body: dict[str, Any] = {"model": "able", "messages": ask("time"), "tools": [TIME]}
    free = (await rig.post("/v1/chat/completions", **body)).json()["choices"][0]["message"]
    assert free["content"] == "No!"
    answer = await rig.post("/v1/chat/completions", **body, tool_choice=choice, stream=stream)
    assert answer.status_code == 200, answer.text
    assert '"name":"get_time"' in answer.text
    assert '"finish_reason":"tool_calls"' in answer.text
    assert "No" not in answer.text
    assert "!" not in answer.text


async def prompt(rig: Rig, model: str = "able", **body: Any) -> str:
    answer = await rig.post("/v1/chat/completions", model=model, _debug_render_only=True, **body)
    assert answer.status_code == 200, answer.text
    return answer.json()["_debug_info"]["rendered_template"]


@pytest.mark.parametrize(
    ("choice", "shown"),
    [
        (None, "[tools get_weather get_time ]"),
        ("auto", "[tools get_weather get_time ]"),
        ("none", ""),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "get_time"}}]},
            },
            "[tools get_time ]",
        ),
    ],
)  # fmt: skip
async def test_which_tools_the_model_is_offered(rig: Rig, choice: Any, shown: str) -> None:
    text = await prompt(rig, messages=ask("hi"), tools=[WEATHER, TIME], tool_choice=choice)
    assert text.partition("[think")[0] == shown


@pytest.mark.parametrize(
    ("effort", "shown"),
    [
        ({}, "[think True ]"),
        ({"reasoning_effort": "none"}, "[think False ]"),
        ({"reasoning_effort": "minimal"}, "[think True low]"),
        ({"reasoning_effort": "high"}, "[think True high]"),
        ({"reasoning": {"effort": "xhigh"}}, "[think True max]"),
    ],
)
async def test_effort(rig: Rig, effort: dict[str, Any], shown: str) -> None:
    assert (await prompt(rig, messages=ask("hi"), **effort)).startswith(shown)


async def test_parts_of_a_message_stay_one_message(rig: Rig) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "get_time", "arguments": ""}}]},
        {"role": "tool", "tool_call_id": "c1", "content": parts},
    ]  # fmt: skip
    text = await prompt(rig, messages=messages, reasoning_effort="none")
    assert text == (
        "[think False ]system: Be kind.\nuser: a\nb\n"
        'assistant: <tool_call>{"name": "get_time", "arguments": {}}</tool_call>\n'
        "tool(get_time): a\nb\nassistant: "
    )


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "wanted",
    [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}],
)  # fmt: skip
async def test_a_format_is_kept(rig: Rig, wanted: Any, stream: bool) -> None:
    body: dict[str, Any] = {"model": "able", "messages": ask("json"), "response_format": wanted}
    answer = await rig.post("/v1/chat/completions", **body, stream=stream)
    if stream:
        deltas = [chunk["choices"][0]["delta"] for chunk in events(answer.text)[:-1]]
        text = "".join(delta.get("content", "") for delta in deltas)
    else:
        text = answer.json()["choices"][0]["message"]["content"]
    assert text == '{"a": 12}'


async def test_logprobs(client: openai.AsyncOpenAI) -> None:
    body: dict[str, Any] = {"model": "plain", "messages": ask("count"), "max_tokens": 5}
    answer = await client.chat.completions.create(**body, logprobs=True, top_logprobs=2)
    assert answer.choices[0].logprobs is not None
    shown = answer.choices[0].logprobs.content or []
    assert b"".join(bytes(one.bytes or ()) for one in shown) == b"one t"
    assert all(len(one.top_logprobs) == 1 and one.logprob <= 0 for one in shown)
    stream = await client.chat.completions.create(**body, logprobs=True, stream=True)
    parts = [chunk.choices[0].logprobs async for chunk in stream]
    streamed = [one for part in parts if part for one in part.content or ()]
    assert [one.token for one in streamed] == [one.token for one in shown]
    without = await client.chat.completions.create(**body)
    assert without.choices[0].logprobs is None


async def test_what_means_nothing_here_is_named(client: openai.AsyncOpenAI, rig: Rig) -> None:
    strict: Any = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
    raw = await client.chat.completions.with_raw_response.create(
        model="able",
        messages=ask("hi"),
        tools=[strict],
        logit_bias={"5": 1},
        user="me",
        extra_body={"top_k": 3, "keep_alive": 0},
    )
    assert raw.headers["hearth-warnings"] == (
        "ignored options: logit_bias, keep_alive, top_k, tools[].function.strict"
    )
    silent = await rig.post("/v1/chat/completions", model="plain", messages=ask("hi"), user="me")
    assert "hearth-warnings" not in silent.headers
