from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator
from typing import Any

import ollama
import pytest

from daemon.models.manifest import StoredMessage
from tests.daemon.api.rig import Rig, api_rig, lines, until

USER = {"role": "user", "content": "hi"}


@pytest.fixture
async def rig(tmp_path: pathlib.Path) -> AsyncIterator[Rig]:
    async with api_rig(tmp_path) as rig:
        await rig.add_model("plain")
        yield rig


async def test_generate_streams_by_default(rig: Rig) -> None:
    answer = await rig.post("/api/generate", model="plain", prompt="hi")
    assert answer.headers["content-type"] == "application/x-ndjson"
    events = lines(answer)
    assert "".join(event["response"] for event in events) == "Hello wörld."
    assert [event["done"] for event in events[:-1]] == [False] * (len(events) - 1)
    last = events[-1]
    assert (last["done"], last["done_reason"], last["response"]) == (True, "stop", "")
    assert all(last[name] > 0 for name in ("load_duration", "eval_count", "prompt_eval_count"))
    assert last["context"]


async def test_the_same_in_one_piece(rig: Rig) -> None:
    answer = await rig.post("/api/generate", model="plain", prompt="hi", stream=False)
    body = answer.json()
    assert (body["response"], body["done"], body["done_reason"]) == ("Hello wörld.", True, "stop")
    assert answer.headers["content-type"] == "application/json; charset=utf-8"


async def test_chat(rig: Rig) -> None:
    answer = await rig.post("/api/chat", model="plain", messages=[USER])
    events = lines(answer)
    assert "".join(event["message"]["content"] for event in events) == "Hello wörld."
    assert events[-1]["done_reason"] == "stop"
    assert "context" not in events[-1]
    whole = await rig.post("/api/chat", model="plain", messages=[USER], stream=False)
    assert whole.json()["message"] == {"role": "assistant", "content": "Hello wörld."}


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
async def test_loading_and_unloading(rig: Rig, path: str) -> None:
    loaded = await rig.post(path, model="plain")
    assert (loaded.json()["done_reason"], loaded.json()["done"]) == ("load", True)
    assert loaded.headers["content-type"].startswith("application/json")
    assert len(rig.services.residency.loaded()) == 1
    unloaded = await rig.post(path, model="plain", keep_alive="0s")
    assert unloaded.json()["done_reason"] == "unload"
    assert "total_duration" not in unloaded.json()
    assert not rig.services.residency.loaded()
    again = await rig.post(path, model="plain", keep_alive=0)
    assert again.json()["done_reason"] == "unload"


async def test_keep_alive_zero_unloads_after_the_answer(rig: Rig) -> None:
    answer = await rig.post("/api/generate", model="plain", prompt="hi", keep_alive=0)
    assert lines(answer)[-1]["done_reason"] == "stop"
    await until(lambda: not rig.services.residency.loaded())


async def test_system_examples_and_persona_reach_the_prompt(rig: Rig) -> None:
    examples = (
        StoredMessage(role="user", content="Q"),
        StoredMessage(role="assistant", content="A"),
    )
    await rig.add_model("persona", system="Be kind.", messages=examples)

    async def prompt(path: str, **body: Any) -> str:
        answer = await rig.post(path, model="persona", _debug_render_only=True, **body)
        return answer.json()["_debug_info"]["rendered_template"]

    whole = "system: Be kind.\nuser: Q\nassistant: A\nuser: hi\nassistant: "
    assert await prompt("/api/generate", prompt="hi") == whole
    assert await prompt("/api/chat", messages=[USER]) == whole
    own = {"role": "SYSTEM", "content": "Be brief."}
    assert (
        await prompt("/api/chat", messages=[own, USER])
        == "user: Q\nassistant: A\nsystem: Be brief.\nuser: hi\nassistant: "
    )
    assert (
        await prompt("/api/generate", prompt="hi", system="Be brief.")
        == "system: Be brief.\nuser: Q\nassistant: A\nuser: hi\nassistant: "
    )
    assert await prompt("/api/generate", prompt="hi", raw=True) == "hi"
    with_context = await prompt("/api/generate", prompt="hi", context=[65, 66])
    assert with_context == "ABsystem: Be kind.\nuser: hi\nassistant: "


REFUSALS: list[tuple[str, dict[str, Any], int, str]] = [
    ("/api/generate", {}, 404, "model '' not found"),
    ("/api/chat", {}, 400, "model is required"),
    ("/api/generate", {"model": "-bad"}, 400, "invalid model name"),
    ("/api/chat", {"model": "a/b/c/d/e"}, 400, "invalid model name"),
    ("/api/generate", {"model": "None"}, 404, "model 'None' not found"),
    ("/api/chat", {"model": "none:7b"}, 404, "model 'none:7b' not found"),
    ("/api/chat", {"model": "none", "keep_alive": 0}, 404, "model 'none' not found"),
    (
        "/api/chat",
        {"model": "plain:cloud"},
        403,
        "ollama cloud is disabled: remote model is unavailable",
    ),
    (
        "/api/generate",
        {"model": "a:cloud:local"},
        400,
        'use either :local or :cloud, not both: "a:cloud:local"',
    ),
    (
        "/api/generate",
        {"model": "none", "top_logprobs": 21},
        400,
        "top_logprobs must be between 0 and 20",
    ),
    (
        "/api/generate",
        {"model": "plain", "keep_alive": "10"},
        400,
        'time: missing unit in duration "10"',
    ),
    (
        "/api/generate",
        {"model": "none", "think": "very"},
        400,
        'invalid think value: "very" (must be "high", "medium", "low", "max", true, or false)',
    ),
    (
        "/api/chat",
        {"model": "plain", "messages": [USER], "think": True, "format": "json"},
        400,
        '"plain" does not support thinking',
    ),
    (
        "/api/generate",
        {"model": "plain", "prompt": "x", "raw": True, "system": "y", "think": True},
        400,
        "raw mode does not support template, system, or context",
    ),
    (
        "/api/generate",
        {"model": "plain", "prompt": "x", "suffix": "y"},
        400,
        "registry.ollama.ai/library/plain:latest does not support insert",
    ),
    (
        "/api/chat",
        {"model": "plain", "messages": [USER], "tools": [{"type": "function"}]},
        400,
        "registry.ollama.ai/library/plain:latest does not support tools",
    ),
    (
        "/api/generate",
        {"model": "plain", "prompt": "x", "template": "a\n{{ .Prompt"},
        500,
        "template: :2: unclosed action",
    ),
    (
        "/api/generate",
        {"model": "plain", "prompt": "x", "images": ["aGk="]},
        400,
        "registry.ollama.ai/library/plain:latest does not support vision",
    ),
    (
        "/api/chat",
        {"model": "plain", "messages": [USER | {"images": ["aGk="]}]},
        400,
        "registry.ollama.ai/library/plain:latest does not support vision",
    ),
    (
        "/api/chat",
        {"model": "none", "messages": [USER | {"images": ["data:image/png;base64,aGk="]}]},
        400,
        "illegal base64 data at input byte 4",
    ),
    (
        "/api/generate",
        {"model": "plain", "prompt": "x", "images": ["UklGRgAAAABXQVZF"]},
        501,
        'not supported by this version yet: "audio"',
    ),
    (
        "/api/generate",
        {"model": "plain", "prompt": "x", "images": ["aGk="], "suffix": "y"},
        400,
        '"images" cannot be used with "suffix"',
    ),
    (
        "/api/chat",
        {"model": "plain", "messages": [USER], "options": {"num_ctx": "x"}},
        500,
        'option "num_ctx" must be of type integer',
    ),
]


@pytest.mark.parametrize(("path", "body", "status", "message"), REFUSALS)
async def test_refusals(
    rig: Rig, path: str, body: dict[str, Any], status: int, message: str
) -> None:
    answer = await rig.post(path, **body)
    assert (answer.status_code, answer.json()) == (status, {"error": message})
    assert not rig.services.residency.loaded()


@pytest.mark.parametrize(
    "given",
    [
        {"format": ""},
        {"format": None, "think": None, "images": None, "options": None, "context": None},
        {"think": False, "images": [], "suffix": "", "template": ""},
    ],
)
async def test_what_says_nothing_is_not_refused(rig: Rig, given: dict[str, Any]) -> None:
    answer = await rig.post("/api/generate", model="plain", prompt="hi", stream=False, **given)
    assert answer.json()["response"] == "Hello wörld."


async def test_a_model_that_only_embeds(rig: Rig) -> None:
    await rig.add_model("bert", metadata={"scripted.pooling_type": 1}, pooling_type=1)
    for path, verb in (("/api/generate", "generate"), ("/api/chat", "chat")):
        answer = await rig.post(path, model="bert", prompt="x", messages=[USER])
        assert (answer.status_code, answer.json()["error"]) == (
            400,
            f'"bert" does not support {verb}',
        )


async def test_any_content_type_and_letter_case(rig: Rig) -> None:
    body = b'{"MODEL":"plain","Prompt":"hi","STREAM":false,"options":null}garbage'
    headers = {"content-type": "application/x-www-form-urlencoded"}
    answer = await rig.client.post("/api/generate", content=body, headers=headers)
    assert answer.json()["response"] == "Hello wörld."


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "missing request body"),
        (b"{", "truncated"),
        (b'{"model":"plain","messages":[{"role":"user","content":["x"]}]}', "content"),
        (b'{"model":"plain","messages":"x"}', "messages"),
    ],
)
async def test_bodies_that_cannot_be_read(rig: Rig, body: bytes, message: str) -> None:
    answer = await rig.client.post("/api/chat", content=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


async def test_options_of_request_and_model(rig: Rig) -> None:
    await rig.add_model("limited", parameters={"num_predict": 2, "stop": ["three"]})
    cut = await rig.post("/api/generate", model="limited", prompt="hi", stream=False)
    assert (cut.json()["done_reason"], cut.json()["eval_count"]) == ("length", 2)
    options: dict[str, Any] = {"num_predict": -1, "num_gpu": 0, "numa": True, "nonsense": 1}
    full = await rig.post(
        "/api/generate", model="limited", prompt="count", stream=False, options=options
    )
    assert full.json()["response"] == "one two "
    assert full.headers["hearth-warnings"] == "ignored options: num_gpu, numa, nonsense"
    assert "hearth-warnings" not in cut.headers


async def test_logprobs(rig: Rig) -> None:
    answer = await rig.post(
        "/api/generate",
        model="plain",
        prompt="count",
        logprobs=True,
        top_logprobs=2,
        options={"num_predict": 5},
    )
    shown = [one for event in lines(answer) for one in event.get("logprobs", [])]
    assert len(shown) == 5
    assert b"".join(bytes(one["bytes"]) for one in shown) == b"one t"
    assert all(one["logprob"] <= 0 and len(one["top_logprobs"]) <= 2 for one in shown)
    without = await rig.post("/api/generate", model="plain", prompt="hi", top_logprobs=2)
    assert "logprobs" not in without.text


@pytest.mark.parametrize("refusal", [{"truncate": False}, {"shift": False}])
async def test_a_prompt_that_may_not_be_cut_is_refused(rig: Rig, refusal: dict[str, bool]) -> None:
    answer = await rig.post("/api/generate", model="plain", prompt="x" * 600, **refusal)
    assert answer.status_code == 400
    assert "the prompt is longer than the context length" in answer.json()["error"]


async def test_what_was_cut_from_a_prompt_is_said(rig: Rig) -> None:
    answer = await rig.post("/api/generate", model="plain", prompt="x" * 600, stream=False)
    body = answer.json()
    assert body["prompt_eval_count"] < 512
    whole = await rig.post("/api/generate", model="plain", prompt="x", stream=False)
    frame = whole.json()["prompt_eval_count"] - 1
    assert body["prompt_eval_count"] + body["prompt_dropped_count"] == 600 + frame
    assert "prompt_dropped_count" not in whole.json()
    history = [USER, {"role": "assistant", "content": "y" * 400}] * 3
    chat = await rig.post("/api/chat", model="plain", messages=[*history, USER], stream=False)
    assert chat.json()["prompt_dropped_count"] > 800


async def test_the_official_client(rig: Rig) -> None:
    async with ollama.AsyncClient(host=rig.base) as client:
        await _exercise(client, rig)


async def _exercise(client: ollama.AsyncClient, rig: Rig) -> None:
    whole = await client.chat("plain", messages=[USER])
    assert whole.message.content == "Hello wörld."
    parts = [part async for part in await client.chat("plain", messages=[USER], stream=True)]
    assert "".join(part.message.content or "" for part in parts) == "Hello wörld."
    assert parts[-1].done
    options: dict[str, Any] = {"seed": 7, "temperature": 0.5, "numa": False, "stop": ["."]}
    for _ in range(2):
        generated = await client.generate("plain", "hi", options=options)
        assert generated.response == "Hello wörld"
    with pytest.raises(ollama.ResponseError, match="not found") as missing:
        await client.chat("none", messages=[USER])
    assert missing.value.status_code == 404
    await client.generate("plain", keep_alive=0)
    assert not rig.services.residency.loaded()
