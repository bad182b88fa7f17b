"""The official OpenAI client against a real daemon with the bundled model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import openai
import pydantic
import pytest

from tests.e2e.daemon_process import DaemonProcess

GREEDY: dict[str, Any] = {"model": "ember", "temperature": 0, "max_completion_tokens": 200}
SHORT: dict[str, Any] = {"model": "ember", "temperature": 0, "max_completion_tokens": 4}
WEATHER: Any = {
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
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 40}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


@pytest.fixture
def client(daemon: DaemonProcess) -> Iterator[openai.OpenAI]:
    url = f"{daemon.url}/v1"
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        yield client


def ask(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_chats_whole_and_streaming(client: openai.OpenAI) -> None:
    question = ask("Why is the sky blue?")
    whole = client.chat.completions.create(messages=question, **GREEDY)
    assert whole.choices[0].finish_reason == "stop"
    text = whole.choices[0].message.content or ""
    assert "blue" in text.lower()
    stream = client.chat.completions.create(
        messages=question, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.total_tokens == whole.usage.total_tokens


def test_what_was_cached_of_a_prompt_is_counted(client: openai.OpenAI) -> None:
    question = ask("The sky is blue. " * 20 + "Why?")
    cached: list[int] = []
    for _ in range(2):
        usage = client.chat.completions.create(messages=question, **SHORT).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        cached.append(usage.prompt_tokens_details.cached_tokens or 0)
        assert cached[-1] < usage.prompt_tokens
    assert cached[1] > cached[0]


def test_a_seed_repeats(client: openai.OpenAI) -> None:
    def story(seed: int) -> str:
        answer = client.completions.create(
            model="ember", prompt="Tell me a story.", temperature=1.5, seed=seed, max_tokens=24
        )
        return answer.choices[0].text

    assert story(7) == story(7) != story(8)


def test_a_tool_call_and_what_it_found(client: openai.OpenAI) -> None:
    messages = ask("What is the weather in Paris?")
    first = client.chat.completions.create(messages=messages, tools=[WEATHER], **GREEDY)
    assert first.choices[0].finish_reason == "tool_calls"
    message = first.choices[0].message
    assert message.content == ""
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    found = {"role": "tool", "tool_call_id": call.id, "content": "21 degrees and sunny"}
    messages += [message, found]
    second = client.chat.completions.create(messages=messages, tools=[WEATHER], **GREEDY)
    assert "sunny in Paris" in (second.choices[0].message.content or "")
    never = client.chat.completions.create(
        messages=ask("What is the weather in Paris?"),
        tools=[WEATHER],
        tool_choice="none",
        **GREEDY,
    )
    assert never.choices[0].message.tool_calls is None


@pytest.mark.parametrize("seed", range(2))
def test_a_required_call_that_the_question_does_not_ask_for(
    client: openai.OpenAI, seed: int
) -> None:
    clock: Any = {"type": "function", "function": {"name": "get_time", "parameters": {}}}

    def called(choice: Any) -> list[str]:
        answer = client.chat.completions.create(
            model="ember",
            messages=ask("Why is the sky blue?"),
            tools=[WEATHER, clock],
            tool_choice=choice,
            seed=seed,
            max_tokens=200,
        )
        assert answer.choices[0].finish_reason == "tool_calls"
        assert answer.choices[0].message.content == ""
        calls: list[Any] = list(answer.choices[0].message.tool_calls or ())
        return [call.function.name for call in calls]

    assert set(called("required")) <= {"get_current_weather", "get_time"}
    named = {"type": "function", "function": {"name": "get_time"}}
    assert set(called(named)) == {"get_time"}


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=40)
    age: int


def test_a_schema_is_kept(client: openai.OpenAI) -> None:
    question = ask("Give me a JSON object with name and age.")
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    answer = client.chat.completions.create(messages=question, response_format=wanted, **GREEDY)
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), SCHEMA)
    parsed = client.chat.completions.parse(messages=question, response_format=Person, **GREEDY)
    assert isinstance(parsed.choices[0].message.parsed, Person)


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        messages=ask("Why is the sky blue?"), logprobs=True, top_logprobs=3, **SHORT
    )
    assert answer.choices[0].logprobs is not None
    shown = answer.choices[0].logprobs.content or []
    assert len(shown) == 4
    assert all(len(one.top_logprobs) == 3 for one in shown)
    # Greedy: the chosen token is the likeliest.
    assert [one.token for one in shown] == [one.top_logprobs[0].token for one in shown]


def test_a_conversation_of_responses(client: openai.OpenAI) -> None:
    body: dict[str, Any] = {"model": "ember", "temperature": 0, "max_output_tokens": 200}
    tool: Any = {"type": "function", "strict": False, **WEATHER["function"]}
    items: list[Any] = ask("What is the weather in Paris?")
    with client.responses.stream(input=items, tools=[tool], **body) as stream:
        kinds = [event.type for event in stream]
        first = stream.get_final_response()
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    (call,) = first.output
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"city": "Paris"}
    items += [
        {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
        {"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees and sunny"},
    ]  # fmt: skip
    second = client.responses.create(input=items, tools=[tool], **body)
    assert "sunny in Paris" in second.output_text
    person = client.responses.parse(
        input="Give me a JSON object with name and age.", text_format=Person, **body
    )
    assert isinstance(person.output_parsed, Person)


def test_embeddings(client: openai.OpenAI, daemon: DaemonProcess) -> None:
    texts = ["the sky", "the sea"]
    ours = client.embeddings.create(model="ember", input=texts)
    body = {"model": "ember", "input": texts}
    native = httpx.post(f"{daemon.url}/api/embed", json=body, timeout=60, trust_env=False).json()
    for one, expected in zip(ours.data, native["embeddings"], strict=True):
        assert one.embedding == pytest.approx(expected, abs=1e-6)
    assert ours.usage.prompt_tokens == native["prompt_eval_count"]
    (cut,) = client.embeddings.create(model="ember", input="the sky", dimensions=8).data
    assert len(cut.embedding) == 8
    assert sum(value * value for value in cut.embedding) == pytest.approx(1, abs=1e-4)


def test_the_models_are_listed(client: openai.OpenAI) -> None:
    assert "ember:latest" in [model.id for model in client.models.list()]
    assert client.models.retrieve("ember").owned_by == "library"


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="model 'nobody' not found"):
        client.chat.completions.create(model="nobody", messages=ask("hi"))
