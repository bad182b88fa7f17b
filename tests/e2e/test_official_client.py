"""The official Python client against a real daemon with the bundled model."""

from __future__ import annotations

import time
from collections.abc import Iterator

import ollama
import pytest

from tests.e2e.daemon_process import DaemonProcess

QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]


@pytest.fixture
def client(daemon: DaemonProcess) -> Iterator[ollama.Client]:
    client = ollama.Client(host=daemon.url, trust_env=False)
    yield client
    client.close()


def test_lists_and_shows_the_bundled_model(client: ollama.Client) -> None:
    assert "ember:latest" in [model.model for model in client.list().models]
    shown = client.show("ember")
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.capabilities is not None
    assert "completion" in shown.capabilities


def test_chats_whole_and_streaming(client: ollama.Client) -> None:
    options = {"temperature": 0, "num_predict": 60}
    whole = client.chat("ember", messages=QUESTION, options=options)
    assert whole.done_reason == "stop"
    assert whole.message.content
    assert "blue" in whole.message.content.lower()
    pieces = list(client.chat("ember", messages=QUESTION, options=options, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert [piece.done for piece in pieces].count(True) == 1
    final = pieces[-1]
    for name in ("total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration"):
        assert final[name] > 0
    assert final.eval_count == whole.eval_count


def test_a_seed_repeats(client: ollama.Client) -> None:
    options = {"seed": 7, "temperature": 1.5, "num_predict": 24, "top_k": 0}
    first = client.generate("ember", "Tell me a story.", options=options)
    assert client.generate("ember", "Tell me a story.", options=options).response == first.response
    other = client.generate("ember", "Tell me a story.", options=options | {"seed": 8})
    assert other.response != first.response


def test_stop_strings_and_limits(client: ollama.Client) -> None:
    answer = client.chat("ember", messages=QUESTION, options={"temperature": 0, "stop": ["blue"]})
    assert answer.done_reason == "stop"
    assert "blue" not in (answer.message.content or "")
    short = client.chat("ember", messages=QUESTION, options={"num_predict": 3})
    assert (short.done_reason, short.eval_count) == ("length", 3)


def loaded(client: ollama.Client) -> list[str | None]:
    return [model.model for model in client.ps().models]


def test_unloads(client: ollama.Client) -> None:
    client.generate("ember", "hi", options={"num_predict": 1})
    assert "ember:latest" in loaded(client)
    client.generate("ember", keep_alive=0)
    for _ in range(200):
        if "ember:latest" not in loaded(client):
            return
        time.sleep(0.02)
    raise AssertionError("the model stayed loaded")


def test_a_missing_model_is_a_404(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat("nobody", messages=QUESTION)
    assert (caught.value.status_code, str(caught.value.error)) == (404, "model 'nobody' not found")
