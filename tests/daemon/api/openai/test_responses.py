"""`/v1/responses` with the official client: objects, the order of events, replayed items, errors."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import openai
import pytest

from backends.scripted.script import Rule, Script
from tests.daemon.api.openai.rigs import TEMPLATE
from tests.daemon.api.rig import Rig, until

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def function(name: str, **parameters: Any) -> Any:
    schema = {"type": "object", "properties": parameters}
    return {"type": "function", "name": name, "parameters": schema}


WEATHER = function("get_weather", z={"type": "string"}, a={"type": "integer"})
TIME = function("get_time")


def frames(text: str) -> list[tuple[str, Any]]:
    """(event, data) of each frame."""
    found: list[tuple[str, Any]] = []
    for block in text.strip().split("\n\n"):
        event, data = block.split("\n")
        found.append((event.removeprefix("event: "), msgspec.json.decode(data[len("data: ") :])))
    return found


async def streamed(rig: Rig, **body: Any) -> list[Any]:
    """The data of each event; their numbers and names are checked on the way."""
    answer = await rig.post("/v1/responses", stream=True, **body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    found = frames(answer.text)
    assert [name for name, _ in found] == [data["type"] for _, data in found]
    assert [data["sequence_number"] for _, data in found] == list(range(len(found)))
    return [data for _, data in found]


def without_repeats(kinds: list[str]) -> list[str]:
    return [kind for i, kind in enumerate(kinds) if i == 0 or kinds[i - 1] != kind]


async def test_a_whole_response(client: openai.AsyncOpenAI, rig: Rig) -> None:
    response = await client.responses.create(
        model="plain", input="hi", instructions="Be kind.", metadata={"a": "b"}
    )
    assert response.output_text == "Hello wörld."
    (item,) = response.output
    assert item.type == "message"
    assert item.status == "completed"
    assert (response.object, response.status, response.model) == ("response", "completed", "plain")
    assert abs(response.created_at - time.time()) < 100
    assert response.usage is not None
    assert response.usage.input_tokens > 0
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response.usage.input_tokens_details.cached_tokens == 0
    raw = (await rig.post("/v1/responses", model="plain", input="hi")).json()
    assert raw["output"][0]["content"] == [
        {"type": "output_text", "text": "Hello wörld.", "annotations": [], "logprobs": []}
    ]
    expected = {
        "incomplete_details": None, "previous_response_id": None, "instructions": None, "error": None,
        "tools": [], "tool_choice": "auto", "truncation": "disabled", "parallel_tool_calls": True,
        "text": {"format": {"type": "text"}}, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        "top_logprobs": 0, "temperature": 1.0, "reasoning": {"effort": None, "summary": None},
        "max_output_tokens": None, "max_tool_calls": None, "store": False, "background": False,
        "service_tier": "default", "metadata": {}, "safety_identifier": None,
        "prompt_cache_key": None,
    }  # fmt: skip
    assert {key: raw[key] for key in expected} == expected


async def test_the_order_of_events_of_a_text(rig: Rig) -> None:
    events = await streamed(rig, model="plain", input="count")
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert without_repeats(kinds) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    for event in events[:2]:
        assert (event["response"]["status"], event["response"]["output"]) == ("in_progress", [])
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == "one two three"
    last = events[-1]["response"]
    assert last["output"][0]["content"][0]["text"] == "one two three"
    assert last["usage"]["output_tokens"] == len("one two three") + 1
    ids = {event["item_id"] for event in events if "item_id" in event}
    assert ids == {last["output"][0]["id"]}


async def test_the_order_of_events_of_thoughts_text_and_calls(rig: Rig) -> None:
    body: dict[str, Any] = {"model": "able", "input": "weather", "tools": [WEATHER, TIME]}
    events = await streamed(rig, **body)
    kinds = [event["type"].removeprefix("response.") for event in events]
    call = [
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
        "output_item.done",
    ]  # fmt: skip
    assert without_repeats(kinds) == [
        "created", "in_progress",
        "output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta",
        "reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done",
        *call, *call, "completed",
    ]  # fmt: skip
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["output_index"] for event in done] == [0, 1, 2, 3]
    output = events[-1]["response"]["output"]
    assert [event["item"] for event in done] == output
    assert [item["type"] for item in output] == ["reasoning", "message", *["function_call"] * 2]
    assert output[0]["summary"] == [{"type": "summary_text", "text": "hm"}]
    assert output[2]["arguments"] == '{"z":"Köln","a":1}'
    whole = (await rig.post("/v1/responses", **body)).json()

    def without_ids(items: list[Any]) -> list[Any]:
        return [{k: v for k, v in item.items() if k not in ("id", "call_id")} for item in items]

    assert without_ids(whole["output"]) == without_ids(output)
    single = (await rig.post("/v1/responses", **body, parallel_tool_calls=False)).json()
    assert [item["type"] for item in single["output"]] == ["reasoning", "message", "function_call"]


async def test_text_behind_a_call_is_not_lost(rig: Rig) -> None:
    script = Script(
        rules=(Rule(pieces=('<tool_call>{"name": "get_time", "arguments": {}}</tool_call>', "Done.")),)
    )  # fmt: skip
    await rig.add_model("talker", script=script, chat_template=TEMPLATE)
    events = await streamed(rig, model="talker", input="x", tools=[TIME])
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call"]
    assert output[0]["content"][0]["text"] == "Done."


async def test_the_clients_own_stream(client: openai.AsyncOpenAI) -> None:
    async with client.responses.stream(model="able", input="weather", tools=[WEATHER]) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert kinds[0] == "response.created"
    assert final.output_text.startswith("Let me see.")
    assert [item.type for item in final.output][:2] == ["reasoning", "message"]


async def test_what_came_out_can_go_in_again(client: openai.AsyncOpenAI) -> None:
    items: list[Any] = [{"role": "user", "content": "weather"}]
    first = await client.responses.create(model="able", input=items, tools=[WEATHER, TIME])
    items += [item.model_dump(exclude_none=True) for item in first.output]
    call = next(item for item in first.output if item.type == "function_call")
    items += [{"type": "function_call_output", "call_id": call.call_id, "output": "11"}]
    second = await client.responses.create(model="able", input=items, tools=[WEATHER, TIME])
    assert second.output_text == "It is 11 degrees."


ECHO_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}{% if message.name %}({{ message.name }}){% endif %}"
    "[{{ message.thinking }}]: {{ message.content }}"
    "{% for call in message.tool_calls %}<{{ call.function.name }}>{% endfor %}|{% endfor %}"
)


@pytest.mark.parametrize(
    ("items", "shown"),
    [
        ("hi", "user[]: hi|"),
        (
            [{"role": "developer", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
             {"role": "user", "content": "hi"}],
            "system[]: a\nb|user[]: hi|",
        ),
        (
            [{"role": "user", "content": "hi"},
             {"type": "reasoning", "encrypted_content": "hm", "summary": []},
             {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Well."}]},
             {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
             {"type": "reasoning", "summary": [{"type": "summary_text", "text": "and"}]},
             {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}"},
             {"type": "web_search_call"},
             {"role": "assistant", "content": "Wait."},
             {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "G"}]},
             {"type": "function_call_output", "call_id": "1", "output": "F"}],
            "user[]: hi|assistant[hm\nand]: Well.\nWait.<f><g>|tool(g)[]: G|tool(f)[]: F|",
        ),
    ],
)  # fmt: skip
async def test_items_become_a_conversation(rig: Rig, items: Any, shown: str) -> None:
    """The scripted model repeats what it was given."""
    rule = Rule(prompt="^" + "".join(f"[{c}]" if c in "|[](){}." else c for c in shown).replace("[[]", r"\[").replace("[]]", r"\]") + "$", pieces=("yes",))  # fmt: skip
    script = Script(rules=(rule,), otherwise=Rule(pieces=("no",)))
    await rig.add_model("echo", script=script, chat_template=ECHO_TEMPLATE)
    answer = (await rig.post("/v1/responses", model="echo", input=items)).json()
    assert answer["output"][-1]["content"][0]["text"] == "yes"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_cut_answer_says_so(rig: Rig, stream: bool) -> None:
    body: dict[str, Any] = {"model": "plain", "input": "count", "max_output_tokens": 5}
    if stream:
        last = (await streamed(rig, **body))[-1]
        assert last["type"] == "response.incomplete"
        response = last["response"]
    else:
        response = (await rig.post("/v1/responses", **body)).json()
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete"
    assert response["output"][0]["content"][0]["text"] == "one t"
    assert response["usage"]["output_tokens"] == 5


@pytest.mark.parametrize(
    "wanted", [{"type": "json_object"}, {"type": "json_schema", "name": "x", "schema": SCHEMA}]
)
async def test_a_format_is_kept(client: openai.AsyncOpenAI, wanted: Any) -> None:
    response = await client.responses.create(model="able", input="json", text={"format": wanted})
    assert response.output_text == '{"a": 12}'
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.type == wanted["type"]


async def test_a_required_call(client: openai.AsyncOpenAI) -> None:
    choices: list[Any] = ["required", {"type": "function", "name": "get_time"}]
    for choice in choices:
        response = await client.responses.create(
            model="able", input="time", tools=[TIME], tool_choice=choice
        )
        assert [item.type for item in response.output] == ["function_call"]
    free = await client.responses.create(
        model="able", input="time", tools=[TIME], tool_choice="none"
    )
    assert "<tool_call>" in free.output_text


async def test_a_namespace_of_tools(rig: Rig) -> None:
    script = Script(
        rules=(Rule(pieces=('<tool_call>{"name": "clock.get_time", "arguments": {}}</tool_call>',)),)
    )  # fmt: skip
    await rig.add_model("spacious", script=script, chat_template=TEMPLATE)
    space = {"type": "namespace", "name": "clock", "tools": [TIME]}
    answer = (await rig.post("/v1/responses", model="spacious", input="x", tools=[space])).json()
    assert [item["name"] for item in answer["output"]] == ["clock.get_time"]


async def test_logprobs(rig: Rig) -> None:
    """Also those of ids that are parts of a character."""
    body: dict[str, Any] = {"model": "plain", "input": "hi", "top_logprobs": 1}
    events = await streamed(rig, **body)
    sent = [
        one for event in events if event["type"].endswith("text.delta") for one in event["logprobs"]
    ]
    (part,) = events[-1]["response"]["output"][0]["content"]
    assert b"".join(bytes(one["bytes"]) for one in sent).decode() == "Hello wörld."
    assert part["logprobs"] == sent
    assert all(len(one["top_logprobs"]) == 1 for one in sent)
    include = ["message.output_text.logprobs"]
    bare = (await rig.post("/v1/responses", model="plain", input="hi", include=include)).json()
    assert len(bare["output"][0]["content"][0]["logprobs"]) == len(sent)


async def test_a_prompt_that_is_too_long(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        await client.responses.create(model="plain", input="x" * 600)
    assert refusal.value.code == "context_length_exceeded"
    cut = await client.responses.create(model="plain", input="x" * 600, truncation="auto")
    assert cut.truncation == "auto"
    assert cut.usage is not None
    details = cut.usage.input_tokens_details.model_extra or {}
    assert cut.usage.input_tokens + details["dropped_tokens"] > 600


@pytest.mark.parametrize("text", ["break", "crash"])
async def test_an_error_within_a_stream(rig: Rig, client: openai.AsyncOpenAI, text: str) -> None:
    events = await streamed(rig, model="plain", input=text)
    *_, failed, error = events
    assert failed["type"] == "response.failed"
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"]["code"] == "server_error"
    assert (error["type"], error["message"]) == ("error", error["error"]["message"])
    assert failed["response"]["error"]["message"] == error["message"]
    stream = await client.responses.create(model="plain", input=text, stream=True)
    with pytest.raises(openai.APIError):
        _ = [event async for event in stream]


@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_before_the_first_piece_has_a_status(rig: Rig, stream: bool) -> None:
    script = Script(rules=(Rule(pieces=("x",), fault="fail"),))
    await rig.add_model("broken", script=script)
    answer = await rig.post("/v1/responses", model="broken", input="hi", stream=stream)
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "api_error")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_the_model(rig: Rig, stream: bool) -> None:
    body = {"model": "plain", "input": "slow", "stream": stream}
    asking = asyncio.create_task(rig.client.post("/v1/responses", json=body))
    residency = rig.services.residency
    await until(lambda: [one for one in residency.loaded() if one.users])
    await asyncio.sleep(0.1)
    assert [one.users for one in residency.loaded()] == [1]
    asking.cancel()
    await until(lambda: not [one for one in residency.loaded() if one.users])


async def test_what_means_nothing_here_is_named(rig: Rig) -> None:
    answer = await rig.post(
        "/v1/responses",
        model="able",
        input="hi",
        store=True,
        text={"verbosity": "low"},
        max_tool_calls=3,
        include=["reasoning.encrypted_content", "file_search_call.results"],
        tools=[TIME | {"strict": True}],
    )
    assert answer.headers["hearth-warnings"] == (
        "ignored options: max_tool_calls, text.verbosity, store, include[file_search_call.results], "
        "tools[].strict"
    )


async def test_the_services_own_tools_are_left_out_and_named(rig: Rig) -> None:
    """Agents offer them to every model: Codex does not work with a server that refuses them."""
    offered = [
        TIME,
        {"type": "web_search", "external_web_access": False},
        {"type": "image_generation"},
    ]
    for tools in (offered, offered[1:]):
        answer = await rig.post("/v1/responses", model="able", input="hi", tools=tools)
        assert answer.status_code == 200, answer.text
        assert answer.headers["hearth-warnings"] == (
            "ignored options: tools[web_search], tools[image_generation]"
        )


STORED = "is not supported: responses are not stored here; send the whole conversation as"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"input": []}, 400, '"input" is required'),
        ({"input": None}, 400, '"input" is required'),
        ({"model": ""}, 400, "model is required"),
        ({"model": "none"}, 404, "model 'none' not found"),
        ({"previous_response_id": "resp_1"}, 400, f'"previous_response_id" {STORED} "input"'),
        ({"conversation": {"id": "c"}}, 400, f'"conversation" {STORED} "input"'),
        ({"background": True}, 400, f'"background" {STORED} "input"'),
        ({"truncation": "some"}, 400, '"truncation" must be "auto" or "disabled"'),
        ({"input": [{"type": "item_reference", "id": "x"}]}, 400, 'input[0]: unknown input item type: "item_reference"'),
        ({"input": [{"role": "user", "content": [{"type": "x"}]}]}, 400, "input[0]: content[0]: unknown content type: x"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, 400, "file inputs are not currently supported"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, 400, "invalid image input"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,aGk="}]}]},
            400,
            "registry.ollama.ai/library/plain:latest does not support vision",
        ),
        ({"input": [{"type": "function_call", "arguments": "no"}]}, 400, "invalid tool call arguments"),
        ({"tools": [{"type": "mcp"}]}, 400, 'tools of type "mcp" are not supported'),
        (
            {"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}},
            400,
            'tool_choice must be "none", "auto", "required", a function or allowed_tools; '
            'not supported: {"type":"web_search"}',
        ),
        ({"tools": [TIME]}, 400, "registry.ollama.ai/library/plain:latest does not support tools"),
        ({"reasoning": {"effort": "low"}}, 400, '"plain" does not support thinking'),
        ({"text": {"format": {"type": "xml"}}}, 400, 'text.format of type "xml" is not supported'),
        ({"text": {"format": {"type": "json_schema"}}}, 400, 'a format of type "json_schema" needs a "schema"'),
        ({"top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
    ],
)  # fmt: skip
async def test_refusals(rig: Rig, body: dict[str, Any], status: int, message: str) -> None:
    answer = await rig.post("/v1/responses", **{"model": "plain", "input": "hi"} | body)
    assert (answer.status_code, answer.json()["error"]["message"]) == (status, message)
    assert not rig.services.residency.loaded()


async def test_a_packed_body_is_refused_by_name(rig: Rig) -> None:
    headers = {"content-encoding": "zstd"}
    answer = await rig.client.post("/v1/responses", content=b"\x28\xb5", headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == (
        "Content-Encoding zstd is not supported, send the body as it is"
    )
