"""`/v1/completions`: the older route, in the model's template."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from daemon.models.manifest import StoredMessage
from tests.daemon.api.openai.rigs import events
from tests.daemon.api.rig import Rig


async def test_whole_and_streamed(client: openai.AsyncOpenAI) -> None:
    whole = await client.completions.create(model="plain", prompt="count")
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("one two three", "stop")
    assert (whole.object, whole.model) == ("text_completion", "plain")
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len("one two three") + 1
    stream = await client.completions.create(
        model="plain", prompt=["count"], stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "one two three"
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert (last.choices, last.usage) == ([], whole.usage)


async def test_a_stream_ends_with_its_word(rig: Rig) -> None:
    answer = await rig.post("/v1/completions", model="plain", prompt="hi", stream=True)
    *chunks, end = events(answer.text)
    assert end == "[DONE]"
    assert all("usage" not in chunk for chunk in chunks)


async def test_the_prompt_stands_in_the_models_template(rig: Rig) -> None:
    examples = (StoredMessage(role="assistant", content="A"),)
    await rig.add_model("persona", system="Be kind.", messages=examples)
    answer = await rig.post("/v1/completions", model="persona", prompt="x", _debug_render_only=True)
    assert (
        answer.json()["_debug_info"]["rendered_template"]
        == "system: Be kind.\nassistant: A\nuser: x\nassistant: "
    )


async def test_no_prompt_loads_the_model(rig: Rig) -> None:
    answer = await rig.post("/v1/completions", model="plain")
    assert answer.json()["choices"] == [{"text": "", "index": 0, "finish_reason": "load"}]
    assert len(rig.services.residency.loaded()) == 1


async def test_thoughts_are_left_out(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="able", prompt="hi")
    assert answer.choices[0].text == "Hello."


async def test_logprobs(client: openai.AsyncOpenAI) -> None:
    body: dict[str, Any] = {"model": "plain", "prompt": "count", "max_tokens": 4}
    shown = (await client.completions.create(**body, logprobs=1)).choices[0].logprobs
    assert shown is not None
    assert shown.tokens == ["o", "n", "e", " "]
    assert shown.text_offset == [0, 1, 2, 3]
    assert shown.token_logprobs == [0.0] * 4
    assert shown.top_logprobs == [{token: 0.0} for token in shown.tokens]
    stream = await client.completions.create(**body, logprobs=0, stream=True)
    parts = [chunk.choices[0].logprobs async for chunk in stream]
    assert [at for part in parts if part for at in part.text_offset or ()] == [0, 1, 2, 3]
    assert all(part.top_logprobs is None for part in parts if part)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"n": 2}, 400, '"n" must be 1: one request gets one answer'),
        ({"best_of": 2}, 400, '"best_of" must be 1: one request gets one answer'),
        ({"echo": True}, 400, '"echo" is not supported'),
        ({"prompt": ["a", "b"]}, 400, '"prompt" must be one string; token ids and several prompts are not supported'),
        ({"prompt": [1, 2]}, 400, '"prompt" must be one string; token ids and several prompts are not supported'),
        ({"suffix": "x"}, 400, "registry.ollama.ai/library/plain:latest does not support insert"),
        ({"stop": 1.5}, 400, "invalid type for 'stop' field: float"),
        ({"logprobs": 30}, 400, "logprobs must be between 0 and 20"),
        ({"model": "none"}, 404, "model 'none' not found"),
    ],
)  # fmt: skip
async def test_refusals(rig: Rig, body: dict[str, Any], status: int, message: str) -> None:
    answer = await rig.post("/v1/completions", **{"model": "plain", "prompt": "hi"} | body)
    assert (answer.status_code, answer.json()["error"]["message"]) == (status, message)
    assert not rig.services.residency.loaded()
