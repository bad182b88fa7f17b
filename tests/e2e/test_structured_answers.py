"""The bundled model calls a tool and keeps a schema, through the daemon and the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import ollama
import pytest

from tests.e2e.daemon_process import DaemonProcess

GREEDY = {"temperature": 0, "num_predict": 200}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 40}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "Get the current weather for a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The name of the city"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture
def client(daemon: DaemonProcess) -> Iterator[ollama.Client]:
    with ollama.Client(host=daemon.url, trust_env=False) as client:
        yield client


def ask(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def test_a_tool_call_and_what_it_found(client: ollama.Client) -> None:
    messages: list[Any] = ask("What is the weather in Paris?")
    first = client.chat("ember", messages, tools=[WEATHER], options=GREEDY)
    assert first.done_reason == "stop"
    assert first.message.content == ""
    assert first.message.tool_calls is not None
    (call,) = first.message.tool_calls
    assert (call.function.name, call.function.arguments) == (
        "get_current_weather",
        {"city": "Paris"},
    )
    found = {"role": "tool", "tool_name": "get_current_weather", "content": "21 degrees and sunny"}
    messages += [first.message, found]
    second = client.chat("ember", messages, tools=[WEATHER], options=GREEDY)
    assert "sunny in Paris" in (second.message.content or "")


def test_the_same_call_streamed(client: ollama.Client) -> None:
    stream = client.chat(
        "ember",
        ask("What is the weather in Paris?"),
        tools=[WEATHER],
        options=GREEDY,
        stream=True,
    )
    parts = list(stream)
    calls = [call for part in parts for call in part.message.tool_calls or ()]
    assert [call.function.arguments for call in calls] == [{"city": "Paris"}]
    assert "".join(part.message.content or "" for part in parts) == ""


def test_a_schema_is_kept(client: ollama.Client) -> None:
    question = "Give me a JSON object with name and age."
    answer = client.chat("ember", ask(question), format=PERSON, options=GREEDY)
    assert answer.done_reason == "stop"
    jsonschema.validate(json.loads(answer.message.content or ""), PERSON)
    parts = client.generate("ember", question, format=PERSON, options=GREEDY, stream=True)
    text = "".join(part.response or "" for part in parts)
    jsonschema.validate(json.loads(text), PERSON)


@pytest.mark.parametrize("seed", range(3))
def test_a_schema_that_the_question_has_nothing_to_do_with(
    client: ollama.Client, seed: int
) -> None:
    schema = {
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "green", "blue"]},
            "marks": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
        },
        "required": ["colour", "marks"],
        "additionalProperties": False,
    }
    options = {"temperature": 1.5, "seed": seed, "num_predict": 400}
    answer = client.chat("ember", ask("Why is the sky blue?"), format=schema, options=options)
    assert answer.done_reason == "stop"
    jsonschema.validate(json.loads(answer.message.content or ""), schema)


def test_tools_and_a_schema_together(client: ollama.Client) -> None:
    """The grammar holds the call itself to the tool's own schema."""
    messages = ask("What is the weather in Rome?")
    answer = client.chat("ember", messages, tools=[WEATHER], format=PERSON, options=GREEDY)
    if answer.message.tool_calls:
        (call,) = answer.message.tool_calls
        assert call.function.name == "get_current_weather"
        assert list(call.function.arguments) == ["city"]
    else:
        jsonschema.validate(json.loads(answer.message.content or ""), PERSON)
