"""A daemon that is told to use MLX: it converts, serves, says so, and survives its worker's end."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.e2e.daemon_process import DaemonProcess

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 40}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    home = tmp_path_factory.mktemp("on-mlx") / "home"
    with DaemonProcess(home, HEARTH_BACKEND="mlx") as process:
        yield process


def chat(daemon: DaemonProcess, text: str, **body: object) -> dict:
    body = {"stream": False, "options": {"temperature": 0, "num_predict": 60}} | body
    messages = [{"role": "user", "content": text}]
    answer = httpx.post(
        f"{daemon.url}/api/chat",
        json={"model": "ember", "messages": messages, **body},
        timeout=120,
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_it_answers_as_the_other_backend_does(served: DaemonProcess, daemon: DaemonProcess) -> None:
    """ONNX multiplies by 8-bit activations, so only most of a greedy answer must be the same."""
    question = "Why is the sky blue?"
    ours = chat(served, question)["message"]["content"]
    theirs = chat(daemon, question)["message"]["content"]
    assert len(ours) > 20
    assert ours[:20] == theirs[:20]
    assert "MLX" in served.log
    running = httpx.get(f"{served.url}/api/ps", trust_env=False).json()["models"]
    assert "computing in float32" in json.dumps(running)


def test_several_clients_at_once_are_each_told_the_same_as_alone(served: DaemonProcess) -> None:
    questions = ["Why is the sky blue?", "List three colours.", "How do rainbows form?"]
    alone = [chat(served, question)["message"]["content"] for question in questions]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda q: chat(served, q)["message"]["content"], questions * 2))
    assert found == alone * 2


def test_a_format_is_kept(served: DaemonProcess) -> None:
    text = chat(served, "Give me a person as JSON.", format=PERSON)["message"]["content"]
    assert set(json.loads(text)) == {"name", "age"}


def test_embeddings(served: DaemonProcess) -> None:
    answer = httpx.post(
        f"{served.url}/api/embed",
        json={"model": "ember", "input": ["the sky", "the sea"]},
        timeout=60,
        trust_env=False,
    )
    first, second = answer.json()["embeddings"]
    assert sum(x * x for x in first) == pytest.approx(1, abs=1e-4)
    assert first != second


def test_a_worker_that_dies_is_replaced(served: DaemonProcess) -> None:
    before = chat(served, "Who are you?")["message"]["content"]
    served.child_running("backends.worker").kill()
    assert chat(served, "Who are you?")["message"]["content"] == before


def test_the_artifact_is_one_for_mlx(served: DaemonProcess) -> None:
    chat(served, "Hi")
    (config,) = pathlib.Path(served.home).rglob("mlx-f1/config.json")
    assert config.with_name("model.safetensors").is_file()
