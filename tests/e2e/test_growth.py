"""Prompts longer than the default context, whose requests say no num_ctx."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.e2e.daemon_process import DaemonProcess

SENTENCE = "The sky is blue and the sun is warm today. "


@pytest.fixture
def daemon(tmp_path: pathlib.Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path / "home", HEARTH_CONTEXT_LENGTH="256") as process:
        yield process


def loaded_length(daemon: DaemonProcess) -> int:
    models: list[dict[str, Any]] = httpx.get(f"{daemon.url}/api/ps").json()["models"]
    return models[0]["context_length"] if models else 0


def question(sentences: int) -> list[Any]:
    return [{"role": "user", "content": SENTENCE * sentences + "Why is the sky blue?"}]


def test_a_long_prompt_gets_a_longer_context(daemon: DaemonProcess) -> None:
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="any", max_retries=0) as client:
        seen: list[int] = []
        for sentences in (1, 40, 1):
            answer = client.chat.completions.create(
                model="ember", messages=question(sentences), max_completion_tokens=8
            )
            assert answer.usage is not None
            seen.append(answer.usage.prompt_tokens)
            if sentences == 1 and len(seen) == 1:
                assert loaded_length(daemon) == 256
    assert seen[0] == seen[2] < 256 < seen[1]
    # The next power of two, and a short prompt does not make it load again.
    assert loaded_length(daemon) == 512


def test_responses_get_it_as_well(daemon: DaemonProcess) -> None:
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="any", max_retries=0) as client:
        answer = client.responses.create(
            model="ember", input=question(40), max_output_tokens=8, truncation="disabled"
        )
        assert answer.usage is not None
        assert answer.usage.input_tokens > 256
        assert loaded_length(daemon) == 512
        with pytest.raises(openai.BadRequestError) as refusal:
            client.responses.create(model="ember", input=question(400), max_output_tokens=8)
        assert refusal.value.code == "context_length_exceeded"


def test_only_a_request_that_says_its_context_is_cut(daemon: DaemonProcess) -> None:
    for said, length in (({"num_ctx": 256}, 256), ({}, 512)):
        asked = {"model": "ember", "messages": question(40), "stream": False}
        asked["options"] = {"num_predict": 8, **said}
        answer = httpx.post(f"{daemon.url}/api/chat", json=asked, timeout=60).json()
        assert answer["done"] and ("prompt_dropped_count" in answer) == bool(said)
        assert loaded_length(daemon) == length


def test_messages_grow_as_far_as_the_model_was_trained(daemon: DaemonProcess) -> None:
    with anthropic.Anthropic(base_url=daemon.url, api_key="any", max_retries=0) as client:
        answer = client.messages.create(model="ember", messages=question(120), max_tokens=8)
        assert answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0) > 1024
        assert loaded_length(daemon) == 2048
        with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
            client.messages.create(model="ember", messages=question(400), max_tokens=8)


def test_an_owner_can_keep_the_context(tmp_path: pathlib.Path) -> None:
    settings = {"HEARTH_CONTEXT_LENGTH": "256", "HEARTH_CONTEXT_GROWTH": "0"}
    with (
        DaemonProcess(tmp_path / "home", **settings) as daemon,
        anthropic.Anthropic(base_url=daemon.url, api_key="any", max_retries=0) as client,
        pytest.raises(anthropic.BadRequestError, match="prompt is too long"),
    ):
        client.messages.create(model="ember", messages=question(40), max_tokens=8)
