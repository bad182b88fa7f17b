"""`/v1/chat/completions` with the official client, and with raw requests where bytes matter."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from tests.daemon.api.openai.rigs import TIME, WEATHER, ask, events
from tests.daemon.api.rig import Rig, until

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


REFUSALS: list[tuple[dict[str, Any], int, str]] = [
    ({"messages": []}, 400, "[] is too short - 'messages'"),
    ({"model": ""}, 400, "model is required"),
    ({"n": 2}, 400, '"n" must be 1: one request gets one answer'),
    ({"model": "none"}, 404, "model 'none' not found"),
    ({"model": "a:cloud"}, 403, "ollama cloud is disabled: remote model is unavailable"),
    ({"messages": [{"role": "user", "content": None}]}, 400, "invalid message content type: <nil>"),
    ({"messages": [{"role": "user", "content": [{"type": "x"}]}]}, 400, "invalid message format"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]},
        400,
        "image URLs are not currently supported, please use base64 encoded data instead",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:image/gif;base64,aGk="}]}]},
        400,
        "invalid image input",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:image/png;base64,aGk="}]}]},
        501,
        'not supported by this version yet: "images"',
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        501,
        'not supported by this version yet: "input_audio"',
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}]},
        400,
        "invalid tool call arguments",
    ),
    ({"reasoning_effort": "low"}, 400, '"plain" does not support thinking'),
    (
        {"reasoning_effort": "very"},
        400,
        'invalid reasoning value: "very" (must be "none", "minimal", "low", "medium", "high", '
        '"max", "xhigh", "ultra")',
    ),
    ({"tools": [WEATHER]}, 400, "registry.ollama.ai/library/plain:latest does not support tools"),
    ({"tools": [{"type": "web_search"}]}, 400, 'tools of type "web_search" are not supported'),
    ({"tools": [{"function": {}}]}, 400, "a tool needs a function with a name"),
    ({"tool_choice": "required"}, 400, 'tool_choice "required" needs tools'),
    (
        {"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        400,
        'tool_choice: there is no tool "f"',
    ),
    (
        {"tools": [TIME], "tool_choice": {"type": "custom"}},
        400,
        'tool_choice must be "none", "auto", "required", a function or allowed_tools; '
        'not supported: {"type":"custom"}',
    ),
    ({"response_format": {"type": "xml"}}, 400, 'response_format of type "xml" is not supported'),
    (
        {"response_format": {"type": "json_schema"}},
        400,
        'a format of type "json_schema" needs a "schema"',
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
        400,
        'format cannot be honoured: Unimplemented keys: ["not"]',
    ),
    ({"modalities": ["text", "audio"]}, 400, '"modalities": only "text" can be answered'),
    ({"top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
    ({"stop": ["a", 1.5]}, 400, "invalid type for 'stop' field: float"),
    ({"temperature": "x"}, 400, "Expected `float | null`, got `str` - at `$.temperature`"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "message"), REFUSALS)
async def test_refusals(rig: Rig, body: dict[str, Any], status: int, message: str) -> None:
    kinds = {400: "invalid_request_error", 404: "not_found_error"}
    for stream in (False, True):
        fields = {"model": "plain", "messages": ask("hi"), "stream": stream} | body
        answer = await rig.post("/v1/chat/completions", **fields)
        assert answer.status_code == status
        assert answer.headers["content-type"].startswith("application/json")
        assert answer.json() == {
            "error": {
                "message": message,
                "type": kinds.get(status, "api_error"),
                "param": None,
                "code": "model_not_found" if status == 404 else None,
            }
        }


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
)
async def test_bodies_that_cannot_be_read(rig: Rig, path: str) -> None:
    empty = await rig.client.post(path)
    assert (empty.status_code, empty.json()["error"]["message"]) == (400, "EOF")
    broken = await rig.client.post(path, content=b"{")
    assert (broken.status_code, broken.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_errors_as_the_client_raises_them(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="none", messages=ask("hi"))
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="must be 1"):
        await client.chat.completions.create(model="plain", messages=ask("hi"), n=3)


async def test_an_error_before_the_first_piece_has_a_status(
    rig: Rig, client: openai.AsyncOpenAI
) -> None:
    """And the client is told not to try again what would fail again."""
    whole = await rig.post("/v1/chat/completions", model="plain", messages=ask("break"))
    assert (whole.status_code, whole.json()["error"]["type"]) == (500, "api_error")
    assert whole.headers["x-should-retry"] == "false"
    patient = client.with_options(max_retries=5)
    with pytest.raises(openai.InternalServerError, match="asked for this failure"):
        await patient.chat.completions.create(model="plain", messages=ask("break"))


@pytest.mark.parametrize("text", ["break", "crash"])
async def test_an_error_within_a_stream(rig: Rig, client: openai.AsyncOpenAI, text: str) -> None:
    answer = await rig.post("/v1/chat/completions", model="plain", messages=ask(text), stream=True)
    assert answer.status_code == 200
    *chunks, last = events(answer.text)
    assert chunks[0]["choices"][0]["delta"]["content"].startswith("half ")
    assert last["error"].keys() == {"message", "type", "param", "code"}
    stream = await client.chat.completions.create(model="plain", messages=ask(text), stream=True)
    with pytest.raises(openai.APIError):
        _ = [chunk async for chunk in stream]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_the_model(rig: Rig, stream: bool) -> None:
    body = {"model": "plain", "messages": ask("slow"), "stream": stream}
    asking = asyncio.create_task(_read_all(rig, body))
    residency = rig.services.residency
    await until(lambda: [one for one in residency.loaded() if one.users])
    await asyncio.sleep(0.1)
    assert [one.users for one in residency.loaded()] == [1]
    asking.cancel()
    await until(lambda: not [one for one in residency.loaded() if one.users])
    assert len(residency.loaded()) == 1


async def _read_all(rig: Rig, body: dict[str, Any]) -> None:
    async with rig.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for _ in answer.aiter_bytes():
            pass
