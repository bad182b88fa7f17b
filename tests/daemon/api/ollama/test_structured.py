"""Tools, thinking and formats over HTTP, with raw requests and with the official client."""

from __future__ import annotations

import pathlib
import re
from collections.abc import AsyncIterator
from typing import Any

import ollama
import pytest

from backends.scripted.script import Rule, Script
from tests.daemon.api.rig import Rig, api_rig, lines

TEMPLATE = (
    "{% if tools %}[tools {{ tools[0].function.name }}]{% endif %}"
    "{% if enable_thinking is defined %}[think {{ enable_thinking }} {{ reasoning_effort }}]{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{% for call in message.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "\n{% endfor %}assistant: {# <think> </think> tool_response #}"
)
SCRIPT = Script(
    rules=(
        Rule(prompt="tool: ", pieces=("It is ", "11 degrees.")),
        Rule(
            prompt="user: weather",
            pieces=(
                "<think>hm", "</think>", "Let me see.", "<tool_call>", '{"name": "get_weather", ',
                '"arguments": {"z": "Köln", "a": 1}}', "</tool_call>\n",
                '<tool_call>{"name": "get_weather", "arguments": {}}</tool_call>',
            ),
        ),
        Rule(prompt="user: broken", pieces=("<tool_call>{oops", "</tool_call>")),
        Rule(prompt="user: stranger", pieces=('<tool_call>{"name": "rm", "arguments": {}}</tool_call>',)),
        Rule(prompt="user: json", pieces=("<think>Well.</thi", 'nk>\nHere: {"a', '": 12} ok')),
    ),
    otherwise=Rule(pieces=("<think>", " I see. ", "</think>", "\n\nHel", "lo.")),
    context_length=512,
)  # fmt: skip
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather",
        "parameters": {"type": "object", "properties": {"z": {"type": "string"}}},
    },
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def ask(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


@pytest.fixture
async def rig(tmp_path: pathlib.Path) -> AsyncIterator[Rig]:
    async with api_rig(tmp_path) as rig:
        await rig.add_model("able", script=SCRIPT, chat_template=TEMPLATE)
        await rig.add_model("plain")
        yield rig


async def test_tool_calls_streamed_and_whole(rig: Rig) -> None:
    body: dict[str, Any] = {"model": "able", "messages": ask("weather"), "tools": [TOOL]}
    events = lines(await rig.post("/api/chat", **body))
    whole = (await rig.post("/api/chat", **body, stream=False)).json()
    called = [event["message"] for event in events if "tool_calls" in event["message"]]
    assert [message["content"] for message in called] == [""] * len(called)
    streamed = [call for message in called for call in message["tool_calls"]]
    for calls in (streamed, whole["message"]["tool_calls"]):
        assert [call["function"]["index"] for call in calls] == [0, 1]
        assert [call["function"]["arguments"] for call in calls] == [{"z": "Köln", "a": 1}, {}]
        assert all(re.fullmatch("call_[a-z0-9]{8}", call["id"]) for call in calls)
    assert list(whole["message"]["tool_calls"][0]["function"]["arguments"]) == ["z", "a"]
    assert whole["message"]["content"] == "Let me see."
    assert whole["message"]["thinking"] == "hm"
    assert "".join(event["message"]["content"] for event in events) == "Let me see."
    assert events[-1]["done_reason"] == whole["done_reason"] == "stop"
    assert events[-1]["message"] == {"role": "assistant", "content": ""}


@pytest.mark.parametrize("text", ["broken", "stranger"])
async def test_what_is_no_call_is_text(rig: Rig, text: str) -> None:
    answer = await rig.post(
        "/api/chat", model="able", messages=ask(text), tools=[TOOL], stream=False
    )
    message = answer.json()["message"]
    assert answer.status_code == 200
    assert message["content"].startswith("<tool_call>")
    assert "tool_calls" not in message


async def test_without_tools_there_are_no_calls(rig: Rig) -> None:
    answer = await rig.post("/api/chat", model="able", messages=ask("weather"), stream=False)
    assert "tool_calls" not in answer.json()["message"]
    assert "<tool_call>" in answer.json()["message"]["content"]


@pytest.mark.parametrize(
    ("think", "shown", "thinking", "text"),
    [
        (None, "[think True ]", " I see. ".lstrip(), "Hello."),
        (True, "[think True ]", "I see. ", "Hello."),
        ("high", "[think True high]", "I see. ", "Hello."),
        (False, "[think False ]", "", "<think> I see. </think>\n\nHello."),
    ],
)
async def test_thinking(rig: Rig, think: Any, shown: str, thinking: str, text: str) -> None:
    messages = ask("hi")
    prompt = await rig.post(
        "/api/chat", model="able", messages=messages, think=think, _debug_render_only=True
    )
    assert prompt.json()["_debug_info"]["rendered_template"].startswith(shown)
    chat = await rig.post("/api/chat", model="able", messages=messages, think=think, stream=False)
    message = chat.json()["message"]
    assert (message.get("thinking", ""), message["content"]) == (thinking, text)
    events = lines(await rig.post("/api/generate", model="able", prompt="hi", think=think))
    assert "".join(event.get("thinking", "") for event in events) == thinking
    assert "".join(event["response"] for event in events) == text


@pytest.mark.parametrize("wanted", ["json", SCHEMA])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_format_is_kept_behind_the_thoughts(rig: Rig, wanted: Any, stream: bool) -> None:
    body: dict[str, Any] = {"model": "able", "format": wanted, "stream": stream}
    answer = lines(await rig.post("/api/chat", messages=ask("json"), **body))
    assert "".join(event["message"]["content"] for event in answer) == '{"a": 12}'
    assert "".join(event["message"].get("thinking", "") for event in answer) == "Well."
    assert answer[-1]["done_reason"] == "stop"
    answer = lines(await rig.post("/api/generate", prompt="json", **body))
    assert "".join(event["response"] for event in answer) == '{"a": 12}'


@pytest.mark.parametrize(
    ("wanted", "status", "message"),
    [
        ("xml", 500, 'invalid format: "\\"xml\\""; expected "json" or a valid JSON Schema object'),
        (3, 500, 'invalid format: "3"; expected "json" or a valid JSON Schema object'),
        ({"not": {}}, 400, 'format cannot be honoured: Unimplemented keys: ["not"]'),
        ({"type": "strin"}, 400, "format cannot be honoured: Invalid type: strin"),
    ],
)
async def test_formats_that_are_refused(rig: Rig, wanted: Any, status: int, message: str) -> None:
    for path in ("/api/chat", "/api/generate"):
        answer = await rig.post(path, model="plain", messages=ask("x"), prompt="x", format=wanted)
        assert (answer.status_code, answer.json()) == (status, {"error": message})


async def test_capabilities_come_before_formats_and_options(rig: Rig) -> None:
    body: dict[str, Any] = {"model": "plain", "messages": ask("x"), "format": "xml"}
    answer = await rig.post("/api/chat", **body, think=True, tools=[TOOL])
    assert answer.json() == {"error": '"plain" does not support thinking'}
    answer = await rig.post("/api/chat", **body, tools=[TOOL], options={"num_ctx": "x"})
    named = "registry.ollama.ai/library/plain:latest does not support tools"
    assert (answer.status_code, answer.json()) == (400, {"error": named})
    answer = await rig.post("/api/chat", **body, options={"num_ctx": "x"})
    assert answer.json() == {"error": 'option "num_ctx" must be of type integer'}


async def test_logprobs_of_a_constrained_answer(rig: Rig) -> None:
    answer = await rig.post(
        "/api/chat",
        model="able", messages=ask("json"), format=SCHEMA, think=False, logprobs=True, stream=False,
    )  # fmt: skip
    shown = b"".join(bytes(one["bytes"]) for one in answer.json()["logprobs"])
    assert shown.decode() == answer.json()["message"]["content"]


def get_weather(z: str, a: int = 0) -> str:
    """Weather.

    Args:
        z: where
        a: how much
    """
    return f"11 degrees in {z}"


async def test_the_official_client(rig: Rig) -> None:
    async with ollama.AsyncClient(host=rig.base) as client:
        await _exercise(client)


async def _exercise(client: ollama.AsyncClient) -> None:
    messages: list[Any] = ask("weather")
    first = await client.chat("able", messages=messages, tools=[get_weather])
    assert first.message.thinking == "hm"
    assert first.message.tool_calls is not None
    call = first.message.tool_calls[0].function
    result = get_weather(**call.arguments)
    messages += [first.message, {"role": "tool", "tool_name": call.name, "content": result}]
    second = await client.chat("able", messages=messages, tools=[get_weather])
    assert second.message.content == "It is 11 degrees."
    asked = ask("weather")
    stream = await client.chat("able", messages=asked, tools=[get_weather], stream=True)
    calls = [call async for part in stream for call in part.message.tool_calls or ()]
    assert [call.function.name for call in calls] == ["get_weather"] * 2
    held = await client.generate("able", "json", format=SCHEMA, think=True)
    assert (held.response, held.thinking) == ('{"a": 12}', "Well.")
    with pytest.raises(ollama.ResponseError, match="does not support tools"):
        await client.chat("plain", messages=asked, tools=[get_weather])
