"""`/v1/messages` over HTTP with scripted models, by raw requests and by the official client."""

from __future__ import annotations

import itertools
import pathlib
import re
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx
import msgspec
import pytest

from backends.scripted.script import Rule, Script
from daemon.models.manifest import StoredMessage
from tests.daemon.api.rig import SCRIPT, Rig, api_rig

# The prompt shows all that reaches a template; the script answers by what it finds there.
TEMPLATE = (
    "{% for tool in tools or [] %}[tool {{ tool.function | tojson }}]{% endfor %}"
    "{% if enable_thinking is defined %}[think {{ enable_thinking }} {{ reasoning_effort }}]{% endif %}"
    "{% for message in messages %}{{ message.role }}"
    "{% if message.tool_name %}({{ message.tool_name }} {{ message.tool_call_id }}){% endif %}: "
    "{% if message.reasoning_content %}[{{ message.reasoning_content }}]{% endif %}{{ message.content }}"
    "{% for call in message.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "{{ '\n' }}{% endfor %}assistant: {# <think> </think> tool_response #}"
)
ABLE = Script(
    rules=(
        Rule(prompt=r"tool\(get_weather", pieces=("It is ", "11 degrees.")),
        Rule(
            prompt="user: weather",
            pieces=(
                "<think>hm", "</think>", "Let me see.", "<tool_call>", '{"name": "get_weather", ',
                '"arguments": {"z": "Köln", "a": 1}}', "</tool_call>\n",
                '<tool_call>{"name": "get_weather", "arguments": {}}</tool_call>',
            ),
        ),
        Rule(
            prompt="user: forced",
            pieces=(
                "<think>No!</think>", 'I will not. <tool_call>{"name": "other", ',
                '"arguments": {"z": "x"}}</tool_call>',
                '<tool_call>{"name": "get_weather", "arguments": {"z": "y"}}</tool_call>',
            ),
        ),
        Rule(prompt="user: json", pieces=("<think>Well.</thi", 'nk>\nHere: {"a', '": 12} ok')),
    ),
    otherwise=Rule(pieces=("<think>", " I see. ", "</think>", "\n\nHel", "lo.")),
    context_length=2048,
)  # fmt: skip
TOOL: dict[str, Any] = {
    "name": "get_weather",
    "description": "Weather",
    "input_schema": {"type": "object", "properties": {"z": {"type": "string"}}},
}
TOLD = (
    '[tool {"name": "get_weather", "description": "Weather", '
    '"parameters": {"type": "object", "properties": {"z": {"type": "string"}}}}]'
)
OTHER_TOLD = TOLD.replace("get_weather", "other")
ON = "[think True ]"
OTHER = TOOL | {"name": "other", "type": "custom"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def ask(text: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def body(text: Any = "hi", model: str = "plain", **fields: Any) -> dict[str, Any]:
    return {"model": model, "max_tokens": 300, "messages": ask(text)} | fields


@pytest.fixture
async def rig(tmp_path: pathlib.Path) -> AsyncIterator[Rig]:
    async with api_rig(tmp_path) as rig:
        await rig.add_model("plain", script=SCRIPT, chat_template=TEMPLATE.partition("{#")[0])
        await rig.add_model("able", script=ABLE, chat_template=TEMPLATE)
        yield rig


@pytest.fixture
async def client(rig: Rig) -> AsyncIterator[anthropic.AsyncAnthropic]:
    inner = anthropic.DefaultAsyncHttpxClient(trust_env=False)
    async with anthropic.AsyncAnthropic(
        base_url=rig.base, api_key="hearth", max_retries=0, http_client=inner
    ) as client:
        yield client


def events_in(text: str) -> list[dict[str, Any]]:
    """The data of every frame, each of which must be named by its own type."""
    assert text.endswith("\n\n")
    found: list[dict[str, Any]] = []
    for frame in text.removesuffix("\n\n").split("\n\n"):
        name, data = frame.split("\n")
        found.append(msgspec.json.decode(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


async def prompted(rig: Rig, expected: str, **request: Any) -> httpx.Response:
    """An answer of a model that says "yes" to this very prompt, and "no" to every other."""
    rule = Rule(prompt=f"^{re.escape(expected)}$", pieces=("yes",))
    script = Script(rules=(rule,), otherwise=Rule(pieces=("no",)), context_length=2048)
    await rig.add_model("asked", script=script, chat_template=TEMPLATE)
    answer = await rig.post("/v1/messages", **{"model": "asked", "max_tokens": 9} | request)
    assert answer.json()["content"] == [{"type": "text", "text": "yes"}]
    return answer


async def test_a_message(rig: Rig) -> None:
    answer = await rig.post("/v1/messages", **body())
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert re.fullmatch("req_[0-9a-f]{24}", answer.headers["request-id"])
    message = answer.json()
    assert re.fullmatch("msg_[0-9a-f]{24}", message.pop("id"))
    usage = message.pop("usage")
    assert usage["input_tokens"] == len("<user: hi\nassistant: ")
    assert usage["output_tokens"] == len("Hello wörld.".encode()) + 1
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "plain",
        "content": [{"type": "text", "text": "Hello wörld."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
    }


async def test_a_stream_tells_the_same_event_by_event(rig: Rig) -> None:
    answer = await rig.post("/v1/messages?beta=true", **body("count", stream=True))
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    events = events_in(answer.text)
    # Pieces that come faster than they are sent are joined.
    kinds = [kind for kind, _ in itertools.groupby(event["type"] for event in events)]
    assert [kind for kind in kinds if kind != "ping"] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    texts = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(texts) == "one two three"
    start, ending = events[0]["message"]["usage"], events[-2]["usage"]
    assert start["input_tokens"] == ending["input_tokens"] == len("<user: count\nassistant: ")
    assert (start["output_tokens"], ending["output_tokens"]) == (0, len("one two three") + 1)


async def test_limits_and_stop_sequences(rig: Rig) -> None:
    for stream in (False, True):

        async def ended(stream: bool = stream, **fields: Any) -> tuple[str, str, str | None]:
            answer = await rig.post("/v1/messages", **body("count", stream=stream, **fields))
            if not stream:
                message = answer.json()
                return (
                    message["content"][0]["text"],
                    message["stop_reason"],
                    message["stop_sequence"],
                )
            events = events_in(answer.text)
            text = "".join(e["delta"]["text"] for e in events if e["type"] == "content_block_delta")
            return text, events[-2]["delta"]["stop_reason"], events[-2]["delta"]["stop_sequence"]

        assert await ended(max_tokens=5) == ("one t", "max_tokens", None)
        assert await ended(stop_sequences=["xyz", " th"]) == ("one two", "stop_sequence", " th")
        assert await ended(stop_sequences=["xyz"]) == ("one two three", "end_turn", None)


async def test_a_stop_string_of_the_model_is_the_end_of_its_turn(rig: Rig) -> None:
    await rig.add_model("stopped", parameters={"stop": ["two"], "temperature": 0.5})
    message = (await rig.post("/v1/messages", **body("count", "stopped"))).json()
    assert message["content"] == [{"type": "text", "text": "one "}]
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)


async def test_count_tokens_generates_nothing_and_needs_no_limit(rig: Rig) -> None:
    system = [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]
    request = body("weather", "able", system=system, tools=[TOOL])
    whole = (await rig.post("/v1/messages", **request)).json()
    del request["max_tokens"]
    answer = await rig.post("/v1/messages/count_tokens", **request)
    usage = whole["usage"]
    assert answer.json() == {"input_tokens": usage["input_tokens"]}
    assert "request-id" in answer.headers
    long = await rig.post("/v1/messages/count_tokens", model="plain", messages=ask("x" * 5000))
    assert long.json() == {"input_tokens": 5000 + len("<user: \nassistant: ")}


async def test_thinking_tools_and_text_in_a_round_trip(
    rig: Rig, client: anthropic.AsyncAnthropic
) -> None:
    request: dict[str, Any] = {"model": "able", "max_tokens": 300, "tools": [TOOL]}
    messages: list[Any] = ask("weather")
    whole = await client.messages.create(messages=messages, **request)
    async with client.messages.stream(messages=messages, **request) as stream:
        streamed = await stream.get_final_message()
    for message in (whole, streamed):
        assert [block.type for block in message.content] == [
            "thinking",
            "text",
            "tool_use",
            "tool_use",
        ]
        thinking, text, call, other = message.content
        assert isinstance(thinking, anthropic.types.ThinkingBlock)
        assert isinstance(text, anthropic.types.TextBlock)
        assert isinstance(call, anthropic.types.ToolUseBlock)
        assert isinstance(other, anthropic.types.ToolUseBlock)
        assert (thinking.thinking, thinking.signature, text.text) == ("hm", "", "Let me see.")
        assert (call.input, other.input) == ({"z": "Köln", "a": 1}, {})
        assert call.id != other.id
        assert message.stop_reason == "tool_use"
    results = [
        {"type": "text", "text": "Now?"},
        {
            "type": "tool_result",
            "tool_use_id": call.id,
            "content": [{"type": "text", "text": "11"}],
        },
        {"type": "tool_result", "tool_use_id": other.id, "content": "12"},
    ]
    messages += [
        {"role": "assistant", "content": streamed.content},
        {"role": "user", "content": results},
    ]
    second = await client.messages.create(messages=messages, **request)
    assert second.stop_reason == "end_turn"
    assert [block.to_dict() for block in second.content] == [
        {"type": "text", "text": "It is 11 degrees."}
    ]


async def test_what_a_template_is_given(rig: Rig) -> None:
    text = {"type": "text", "text": "g"}
    messages = [
        *ask([{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": None}]),
        {
            "role": "ASSISTANT",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": "s"},
                {"type": "text", "text": "c"},
                {"type": "tool_use", "id": "1", "name": "get_weather", "input": {"z": 1}},
            ],
        },
        *ask(
            [
                {"type": "text", "text": "d"},
                {"type": "tool_result", "tool_use_id": "1", "content": "e", "is_error": False},
                {"type": "document", "title": "T", "source": {"type": "text", "data": "f"}},
                {"type": "search_result", "source": "https://x", "title": "U", "content": [text]},
            ]
        ),
    ]
    spoken = (
        "system: S.\nuser: ab\n"
        'assistant: [t]c<tool_call>{"name": "get_weather", "arguments": {"z": 1}}</tool_call>\n'
        "tool(get_weather 1): e\nuser: dT\n\nf\n\nU\n\ng\n\n\nassistant: "
    )
    await prompted(rig, TOLD + ON + spoken, messages=messages, system="S.", tools=[TOOL])


async def test_system_texts(rig: Rig) -> None:
    examples = (StoredMessage(role="user", content="Q"),)
    await rig.add_model("persona", system="Be kind.", messages=examples)
    own = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    billed = [{"type": "text", "text": "x-anthropic-billing-header: cch=a1b2c;"}, *own]
    for system in ("Be brief.", own, billed, "x-anthropic-billing-header: cch=0;\nBe brief."):
        expected = ON + "system: Be brief.\nuser: hi\nassistant: "
        await prompted(rig, expected, messages=ask("hi"), system=system)
    inside = [{"role": "system", "content": "Be brief."}, *ask("hi")]
    await prompted(rig, ON + "system: Be brief.\nuser: hi\nassistant: ", messages=inside)
    own_count = {"model": "persona", "messages": ask("hi")}
    for system, shown in (("", "Be kind."), ("Be brief.", "Be brief.")):
        counted = await rig.post("/v1/messages/count_tokens", **own_count, system=system)
        prompt = f"<system: {shown}\nuser: Q\nuser: hi\nassistant: "
        assert counted.json() == {"input_tokens": len(prompt)}


async def test_the_beginning_of_an_answer_is_continued(rig: Rig) -> None:
    messages = [*ask("hi"), {"role": "assistant", "content": "Hel"}]
    await prompted(rig, ON + "user: hi\nassistant: Hel", messages=messages)


THINKING: list[tuple[dict[str, Any], str]] = [
    ({}, ON),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, ON),
    ({"thinking": {"type": "disabled"}}, "[think False ]"),
    ({"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}}, "[think False ]"),
    ({"thinking": {"type": "adaptive"}}, ON),
    ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, "[think True low]"),
    ({"thinking": {"type": "enabled"}, "output_config": {"effort": "xhigh"}}, "[think True high]"),
    ({"output_config": {"effort": "max"}}, "[think True max]"),
    ({"output_config": {"effort": "strange"}}, ON),
]


@pytest.mark.parametrize(("given", "shown"), THINKING)
async def test_how_much_to_think(rig: Rig, given: dict[str, Any], shown: str) -> None:
    await prompted(rig, shown + "user: hi\nassistant: ", messages=ask("hi"), **given)


async def test_thoughts(rig: Rig) -> None:
    message = (await rig.post("/v1/messages", **body(model="able"))).json()
    assert message["content"] == [
        {"type": "thinking", "thinking": "I see. ", "signature": ""},
        {"type": "text", "text": "Hello."},
    ]
    hidden = body(model="able", thinking={"type": "adaptive", "display": "omitted"})
    message = (await rig.post("/v1/messages", **hidden)).json()
    assert message["content"][0]["thinking"] == ""
    vain = body(thinking={"type": "enabled", "budget_tokens": 2000})
    answer = await rig.post("/v1/messages", **vain)
    assert answer.json()["content"] == [{"type": "text", "text": "Hello wörld."}]
    named = "ignored options: thinking.budget_tokens, thinking"
    assert answer.headers["hearth-warnings"] == named


CHOICES: list[tuple[dict[str, Any] | None, str]] = [
    (None, TOLD + OTHER_TOLD),
    ({"type": "auto", "disable_parallel_tool_use": True}, TOLD + OTHER_TOLD),
    ({"type": "none"}, ""),
]


@pytest.mark.parametrize(("choice", "told"), CHOICES)
async def test_which_tools_are_offered(rig: Rig, choice: dict[str, Any] | None, told: str) -> None:
    request = {"messages": ask("hi"), "tools": [TOOL, OTHER], "tool_choice": choice}
    answer = await prompted(rig, told + ON + "user: hi\nassistant: ", **request)
    assert "hearth-warnings" not in answer.headers


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ({"type": "any"}, ["other", "get_weather"]),
        ({"type": "tool", "name": "get_weather"}, ["get_weather"]),
        ({"type": "any", "disable_parallel_tool_use": True}, ["other"]),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_call_can_be_demanded(
    client: anthropic.AsyncAnthropic, rig: Rig, choice: Any, called: list[str], stream: bool
) -> None:
    request: Any = {"model": "able", "max_tokens": 300, "messages": ask("forced")}
    request |= {"tools": [TOOL, OTHER], "tool_choice": choice}
    if stream:
        async with client.messages.stream(**request) as events:
            message = await events.get_final_message()
    else:
        message = await client.messages.create(**request)
    calls = [block for block in message.content if block.type != "thinking"]
    assert [block.name for block in calls if block.type == "tool_use"] == called
    assert len(calls) == len(called)
    assert message.stop_reason == "tool_use"


async def test_a_call_that_no_grammar_describes_cannot_be_demanded(rig: Rig) -> None:
    template = TEMPLATE.replace("tool_response", "<function=")
    await rig.add_model("coder", script=ABLE, chat_template=template)
    request = body(model="coder", tools=[TOOL])
    assert (await rig.post("/v1/messages", **request)).status_code == 200
    answer = await rig.post("/v1/messages", **request, tool_choice={"type": "any"})
    named = "a required tool call is not supported for calls in the form of 'qwen-coder'"
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, named)


async def test_a_format_is_kept(rig: Rig, client: anthropic.AsyncAnthropic) -> None:
    wanted: Any = {"type": "json_schema", "schema": SCHEMA}
    for given in ({"output_config": {"format": wanted}}, {"output_format": wanted}):
        message = (await rig.post("/v1/messages", **body("json", "able", **given))).json()
        assert [block.get("text") for block in message["content"]] == [None, '{"a": 12}']
    messages: list[Any] = ask("json")
    held = await client.messages.create(
        model="able",
        max_tokens=99,
        messages=messages,
        output_config={"format": wanted},
    )
    assert held.stop_reason == "end_turn"


async def test_hints_without_meaning_are_named(rig: Rig) -> None:
    content = [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "hi"}]
    request = body(content, metadata={"user_id": "u"}, unheard_of=1)
    answer = await rig.post("/v1/messages", **request)
    assert answer.status_code == 200
    named = 'ignored options: metadata, content block "redacted_thinking"'
    assert answer.headers["hearth-warnings"] == named
    assert "hearth-warnings" not in (await rig.post("/v1/messages", **body())).headers
