"""What `/v1/chat/completions` refuses, and what becomes of requests that fail or leave."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from tests.daemon.api.openai.rigs import TIME, WEATHER, ask, events
from tests.daemon.api.rig import Rig, until

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


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
        400,
        "registry.ollama.ai/library/plain:latest does not support vision",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:image/png;base64,aGk"}]}]},
        400,
        "invalid image input",
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
