"""What `/v1/messages` refuses, and answers that do not end as they should."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pathlib
import re
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.scripted.script import Script
from daemon.api import application
from daemon.api.anthropic.reading import check_required, read_wishes
from daemon.api.anthropic.wire import Block, MessagesRequest, WireMessage
from daemon.api.body import read_struct
from daemon.errors import DaemonError, Invalid
from tests.daemon.api.rig import Rig, api_rig, until

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
TOOL: dict[str, Any] = {"name": "f", "input_schema": {"type": "object"}}
KEYS = (
    *("type", "text", "role", "content", "source", "data", "id", "name", "input", "tool_use_id"),
    *("messages", "system", "tools", "model", "input_schema", "thinking", "tool_choice", "title"),
)
PLAIN = "registry.ollama.ai/library/plain:latest"


def ask(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def body(content: Any = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "plain", "max_tokens": 99, "messages": ask(content)} | fields


@pytest.fixture
async def rig(tmp_path: pathlib.Path) -> AsyncIterator[Rig]:
    async with api_rig(tmp_path) as rig:
        await rig.add_model("plain")
        yield rig


def _nested(*content: Any) -> list[dict[str, Any]]:
    return [{"type": "tool_result", "tool_use_id": "1", "content": list(content)}]


REFUSALS: list[tuple[dict[str, Any], int, str]] = [
    ({}, 400, "model is required"),
    ({"model": " "}, 400, "model is required"),
    ({"model": "none"}, 400, "max_tokens is required and must be positive"),
    ({"model": "none", "max_tokens": -1}, 400, "max_tokens is required and must be positive"),
    ({"model": "none", "max_tokens": 1}, 400, "messages is required"),
    (body(model="none"), 404, "model 'none' not found"),
    (body(model="-bad"), 400, "invalid model name"),
    (
        body(model="plain:cloud"),
        403,
        "ollama cloud is disabled: remote model is unavailable",
    ),
    (body(temperature="hot"), 400, "Expected `float | null`, got `str` - at `$.temperature`"),
    (body(messages=[{"content": "x"}]), 400, 'messages.0.role: unexpected value ""'),
    (
        body(messages=[{"role": "tool", "content": "x"}]),
        400,
        'messages.0.role: unexpected value "tool"',
    ),
    (body(messages=[{"role": "user"}]), 400, "messages.0.content: field required"),
    (
        body(messages=[*ask("x"), *ask(3)]),
        400,
        "Expected `str | array | null`, got `int` - at `$.messages[1].content`",
    ),
    (
        body(system=[IMAGE]),
        400,
        'system.0: only text blocks are supported, not "image"',
    ),
    (
        body([{"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}]),
        400,
        "invalid image source type: url. Only base64 images are supported.",
    ),
    (body([IMAGE]), 400, "registry.ollama.ai/library/plain:latest does not support vision"),
    (body(_nested(IMAGE)), 400, "registry.ollama.ai/library/plain:latest does not support vision"),
    (
        body([{"type": "image", "source": {"type": "base64", "data": "aGk"}}]),
        400,
        "invalid base64 image data: illegal base64 data at input byte 3",
    ),
    (
        body([{"type": "document", "source": {"type": "base64", "data": "aGk="}}]),
        501,
        'not supported by this version yet: "document" of source "base64"',
    ),
    (
        body(_nested({"type": "tool_reference"})),
        400,
        'messages.0.content.0.content: content blocks of type "tool_reference" are not supported here',
    ),
    (
        body([{"type": "tool_use", "name": "f"}]),
        400,
        "tool_use block missing required 'id' field",
    ),
    (
        body([{"type": "tool_use", "id": "1", "input": {}}]),
        400,
        "tool_use block missing required 'name' field",
    ),
    (
        body([{"type": "tool_result", "content": "x"}]),
        400,
        "tool_result block missing required 'tool_use_id' field",
    ),
    (body(tools=[TOOL]), 400, f"{PLAIN} does not support tools"),
    (body(tools=[TOOL, TOOL]), 400, "tools: tool names must be unique"),
    (body(tools=[{"input_schema": {}}]), 400, "tools.0.name: field required"),
    (body(tools=[TOOL, {"name": "g"}]), 400, "tools.1.input_schema: field required"),
    (
        body(tools=[{"type": "web_search_20250305", "name": "web_search"}]),
        400,
        'tools.0: tools of type "web_search_20250305" are Anthropic\'s own and not available here',
    ),
    (
        body(tools=[TOOL], tool_choice={"type": "tool", "name": "g"}),
        400,
        'tool_choice.name: there is no tool "g" in this request',
    ),
    (body(tool_choice={"type": "some"}), 400, 'tool_choice.type: unexpected value "some"'),
    (
        body(tool_choice={"type": "any"}),
        400,
        "tool_choice may only be specified while providing tools",
    ),
    (
        body(output_config={"format": {"type": "text"}}),
        400,
        "output_config.format: must be a json_schema with its schema",
    ),
    (
        body(mcp_servers=[{"name": "x"}]),
        501,
        'not supported by this version yet: "mcp_servers"',
    ),
]
TYPES = {
    400: "invalid_request_error",
    403: "permission_error",
    404: "not_found_error",
    501: "api_error",
}


@pytest.mark.parametrize(("request_body", "status", "message"), REFUSALS)
async def test_refusals(rig: Rig, request_body: dict[str, Any], status: int, message: str) -> None:
    answer = await rig.post("/v1/messages", **request_body)
    shown = answer.json()
    request_id = shown.pop("request_id")
    assert shown == {"type": "error", "error": {"type": TYPES[status], "message": message}}
    assert answer.status_code == status
    assert re.fullmatch("req_[0-9a-f]{24}", request_id)
    assert answer.headers["request-id"] == request_id
    assert not rig.services.residency.loaded()
    # Whoever tries every 5xx again is told where that is in vain.
    assert answer.headers.get("x-should-retry") == ("false" if status >= 500 else None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "EOF"),
        (b" \n", "EOF"),
        (b"{", "truncated"),
        (b"[]", "Expected `object`"),
        (b"nonsense", "malformed"),
    ],
)
async def test_bodies_that_cannot_be_read(rig: Rig, content: bytes, message: str) -> None:
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        answer = await rig.client.post(path, content=content)
        assert (answer.status_code, answer.json()["type"]) == (400, "error")
        assert message in answer.json()["error"]["message"]


async def test_a_body_that_is_too_large(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "MAX_BODY_BYTES", 1000)
    async with api_rig(tmp_path) as rig:
        answer = await rig.post("/v1/messages", **body("x" * 1000))
    assert (answer.status_code, answer.json()["error"]["type"]) == (413, "request_too_large")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=20,
)


@given(JSON)
def test_whatever_is_sent_only_refusals_come_out(value: Any) -> None:
    request = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": value}]}
    for sent in (value, request, request | {"system": value}, request | {"tools": [value]}):
        try:
            data = read_struct(json.dumps(sent).encode(), MessagesRequest)
            check_required(data)
            wishes = read_wishes(data)
        except DaemonError as error:
            assert error.message
        else:
            assert all(isinstance(message.content, str) for message in wishes.messages)


def test_deep_nesting_is_refused() -> None:
    content: Any = "x"
    for _ in range(300):
        content = [{"type": "document", "source": {"type": "content", "content": content}}]
    data = MessagesRequest(
        model="m",
        max_tokens=1,
        messages=(
            WireMessage(
                role="user",
                content=(Block(type="document", source={"type": "content", "content": content}),),
            ),
        ),
    )
    with pytest.raises(Invalid, match='of type "document" are not supported here'):
        read_wishes(data)


async def test_any_content_type_and_null_is_not_sent(rig: Rig) -> None:
    text = b'{"model":"plain","max_tokens":9,"messages":[{"role":"user","content":"hi"}],'
    text += b'"stream":null,"tools":null,"system":null,"thinking":null,"unheard":{}}garbage'
    headers = {"content-type": "application/x-www-form-urlencoded"}
    answer = await rig.client.post("/v1/messages", content=text, headers=headers)
    assert answer.json()["type"] == "message"


async def test_a_model_that_only_embeds(rig: Rig) -> None:
    await rig.add_model("bert", metadata={"scripted.pooling_type": 1}, pooling_type=1)
    answer = await rig.post("/v1/messages", **body(model="bert"))
    assert answer.json()["error"]["message"] == '"bert" does not support chat'


@pytest.mark.parametrize("stream", [True, False])
async def test_a_prompt_that_does_not_fit_is_refused_and_not_cut(rig: Rig, stream: bool) -> None:
    messages = [*ask("a" * 400), *ask("b" * 400)]
    answer = await rig.post("/v1/messages", **body(messages=messages, stream=stream))
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["error"]["message"].startswith("prompt is too long: ")


async def test_an_answer_ends_where_the_context_does(rig: Rig) -> None:
    message = (await rig.post("/v1/messages", **body("slow" + "a" * 450, max_tokens=5000))).json()
    assert message["stop_reason"] == "max_tokens"
    assert message["usage"]["input_tokens"] + message["usage"]["output_tokens"] == 512


@pytest.fixture
async def client(rig: Rig) -> AsyncIterator[anthropic.AsyncAnthropic]:
    inner = anthropic.DefaultAsyncHttpxClient(trust_env=False)
    async with anthropic.AsyncAnthropic(
        base_url=rig.base, api_key="hearth", max_retries=0, http_client=inner
    ) as client:
        yield client


async def test_the_official_client_knows_the_errors(client: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="model 'none' not found") as caught:
        await client.messages.create(**body(model="none"))
    assert caught.value.request_id is not None
    with pytest.raises(anthropic.BadRequestError, match="does not support tools"):
        await client.messages.create(**body(tools=[TOOL]))


async def test_an_error_in_the_middle_of_a_stream(
    rig: Rig, client: anthropic.AsyncAnthropic
) -> None:
    answer = await rig.post("/v1/messages", **body("break", stream=True))
    assert answer.status_code == 200
    name, data = answer.text.removesuffix("\n\n").split("\n\n")[-1].split("\n")
    assert name == "event: error"
    assert data.startswith('data: {"type":"error","error":{"type":"api_error","message":')
    assert answer.headers["request-id"] in data
    assert "message_stop" not in answer.text
    seen: list[str] = []
    with pytest.raises(anthropic.APIStatusError, match="the script asked for this failure"):
        async for event in await client.messages.create(**body("break"), stream=True):
            seen.append(event.type)
    assert seen[-1] == "content_block_delta"


async def test_a_worker_that_dies_is_an_error_and_the_next_request_works(rig: Rig) -> None:
    answer = await rig.post("/v1/messages", **body("crash"))
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "api_error"
    assert "model runner has unexpectedly stopped" in answer.json()["error"]["message"]
    assert "x-should-retry" not in answer.headers
    assert (await rig.post("/v1/messages", **body())).status_code == 200


async def test_a_load_that_fails_has_a_status_even_in_a_stream(rig: Rig) -> None:
    await rig.add_model("broken", script=Script(load_fault="fail"))
    answer = await rig.post("/v1/messages", **body(model="broken", stream=True))
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "api_error")
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["request-id"] == answer.json()["request_id"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_the_model_at_once(rig: Rig, stream: bool) -> None:
    leaving = asyncio.create_task(_post_patiently(rig.base, body("slow", stream=stream)))
    await until(lambda: any(model.users for model in rig.services.residency.loaded()))
    await asyncio.sleep(0.1)
    await _leave(leaving)
    await until(lambda: not any(model.users for model in rig.services.residency.loaded()))
    assert len(rig.services.residency.loaded()) == 1


async def _post_patiently(base: str, request: dict[str, Any]) -> None:
    async with httpx.AsyncClient(timeout=None) as client:
        await client.post(f"{base}/v1/messages", json=request)


async def _leave(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_full_queue_is_overload_and_says_when_to_come_again(tmp_path: pathlib.Path) -> None:
    async with api_rig(tmp_path, max_queue=1, num_parallel=1) as rig:
        await rig.add_model("plain")
        residency = rig.services.residency
        held = [asyncio.create_task(_post_patiently(rig.base, body("slow")))]
        await until(lambda: any(model.users for model in residency.loaded()))
        held.append(asyncio.create_task(_post_patiently(rig.base, body("slow"))))
        await until(lambda: len(residency.queue()) == 1)
        for stream in (True, False):
            answer = await rig.post("/v1/messages", **body(stream=stream))
            assert (answer.status_code, answer.json()["error"]["type"]) == (503, "overloaded_error")
            assert int(answer.headers["Retry-After"]) > 0
        for task in held:
            await _leave(task)
