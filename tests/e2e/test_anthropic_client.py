"""The official Anthropic client against a real daemon with the bundled model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pydantic
import pytest

from tests.e2e.daemon_process import DaemonProcess

QUESTION: list[Any] = [{"role": "user", "content": "Why is the sky blue?"}]
# Newer clients no longer have an argument for the temperature; models still do.
GREEDY: Any = {"model": "ember", "max_tokens": 60, "extra_body": {"temperature": 0}}
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "Get the weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}


@pytest.fixture
def client(daemon: DaemonProcess) -> Iterator[anthropic.Anthropic]:
    inner = anthropic.DefaultHttpxClient(trust_env=False)
    with anthropic.Anthropic(
        base_url=daemon.url, api_key="hearth", max_retries=0, http_client=inner
    ) as client:
        yield client


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_a_message_whole_and_streamed(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(messages=QUESTION, **GREEDY)
    assert whole.stop_reason == "end_turn"
    assert "blue" in text_of(whole).lower()
    with client.messages.stream(messages=QUESTION, **GREEDY) as stream:
        pieces = list(stream.text_stream)
        streamed = stream.get_final_message()
    # How many pieces there are says nothing: those that wait for a busy reader are merged.
    assert "".join(pieces) == text_of(streamed) == text_of(whole)
    assert streamed.usage.output_tokens == whole.usage.output_tokens


def test_tokens_are_counted_and_those_of_the_cache_apart(client: anthropic.Anthropic) -> None:
    system = "You answer in one sentence. " * 8
    counted = client.messages.count_tokens(model="ember", messages=QUESTION, system=system)
    for expects_cached in (False, True):
        message = client.messages.create(messages=QUESTION, system=system, **GREEDY)
        usage = message.usage
        assert usage.cache_read_input_tokens is not None
        assert usage.input_tokens + usage.cache_read_input_tokens == counted.input_tokens
        if expects_cached:
            assert usage.cache_read_input_tokens > counted.input_tokens // 2


def test_the_start_of_a_stream_has_the_counts_of_its_end(client: anthropic.Anthropic) -> None:
    events = list(client.messages.create(messages=QUESTION, stream=True, **GREEDY))
    start = next(event for event in events if event.type == "message_start")
    ending = next(event for event in events if event.type == "message_delta")
    assert start.message.usage.input_tokens == ending.usage.input_tokens
    cached = ending.usage.cache_read_input_tokens
    assert start.message.usage.cache_read_input_tokens == cached


def test_stop_sequences_and_limits(client: anthropic.Anthropic) -> None:
    stopped = client.messages.create(messages=QUESTION, stop_sequences=["blue", "moon"], **GREEDY)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "blue")
    assert "blue" not in text_of(stopped)
    short = client.messages.create(messages=QUESTION, **GREEDY | {"max_tokens": 3})
    assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 3)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_round_trip(client: anthropic.Anthropic, stream: bool) -> None:
    request: Any = GREEDY | {"tools": [WEATHER]}
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    if stream:
        with client.messages.stream(messages=messages, **request) as events:
            first = events.get_final_message()
    else:
        first = client.messages.create(messages=messages, **request)
    assert first.stop_reason == "tool_use"
    call = first.content[-1]
    assert isinstance(call, anthropic.types.ToolUseBlock)
    assert (call.name, call.input) == ("get_weather", {"city": "Paris"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "11 degrees, rain"}
    messages += [
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    second = client.messages.create(messages=messages, **request)
    assert second.stop_reason == "end_turn"
    assert text_of(second)


def test_a_call_that_the_model_would_not_make_can_be_demanded(client: anthropic.Anthropic) -> None:
    request: Any = GREEDY | {"tools": [WEATHER]}
    free = client.messages.create(messages=QUESTION, **request)
    assert free.stop_reason == "end_turn"
    choices: list[Any] = [{"type": "any"}, {"type": "tool", "name": "get_weather"}]
    for choice in choices:
        message = client.messages.create(messages=QUESTION, tool_choice=choice, **request)
        assert message.stop_reason == "tool_use"
        assert {block.type for block in message.content} == {"tool_use"}


class Person(pydantic.BaseModel):
    name: str
    age: int


def test_a_format_is_parsed_by_the_client(client: anthropic.Anthropic) -> None:
    asked: list[Any] = [{"role": "user", "content": "Give me a JSON object."}]
    message = client.messages.parse(messages=asked, output_format=Person, **GREEDY)
    assert isinstance(message.parsed_output, Person)


@anthropic.beta_tool
def get_weather(city: str) -> str:
    """Get the weather of a city

    Args:
        city: which one
    """
    return f"11 degrees in {city}"


def test_the_clients_own_tool_loop(client: anthropic.Anthropic) -> None:
    asked: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    loop = client.beta.messages.tool_runner(tools=[get_weather], messages=asked, **GREEDY)
    assert [message.stop_reason for message in loop] == ["tool_use", "end_turn"]


def test_a_missing_model_is_not_found(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="model 'nobody' not found"):
        client.messages.create(messages=QUESTION, **GREEDY | {"model": "nobody"})
