"""Models with eyes through the daemon, asked by the official clients in all three dialects.

The tower and the text model are random, so answers mean nothing; but the same image gives the same
answer, another image another one, and the tokens are counted as llama.cpp counts them.
"""

from __future__ import annotations

import base64
import contextlib
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest

from tests.e2e.daemon_process import ROOT, DaemonProcess
from tests.e2e.test_adapters import post, upload
from tests.models.library_vision import make_library_file
from tests.models.random_vision import EXACT_SIZES, make_projector, make_text, png
from tests.parity.vision_reference import SeeingLlamaCpp, image_part

KIND, MODEL, BLIND = "qwen2.5vl", "seeing", "blind"
OPTIONS = {"temperature": 0, "num_predict": 8, "num_ctx": 512}
FIRST, SECOND = (png(*EXACT_SIZES[KIND], seed) for seed in (1, 2))
QUESTION = "What is it?"
Files = tuple[pathlib.Path, pathlib.Path]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("seeing")
    return make_text(folder / "text.gguf", KIND), make_projector(folder / "mmproj.gguf", KIND)


@pytest.fixture(scope="module", params=["onnx", "mlx"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, files: Files
) -> Iterator[DaemonProcess]:
    """A daemon of each backend, with a model that sees and the same one that does not."""
    home = tmp_path_factory.mktemp(request.param) / "home"
    with DaemonProcess(home, HEARTH_BACKEND=request.param) as daemon:
        given = {path.name: upload(daemon, path) for path in files}
        assert post(daemon, "/api/create", model=MODEL, files=given).json() == {"status": "success"}
        text = {files[0].name: given[files[0].name]}
        assert post(daemon, "/api/create", model=BLIND, files=text).is_success
        yield daemon


@pytest.fixture
def client(served: DaemonProcess) -> Iterator[ollama.Client]:
    client = ollama.Client(host=served.url, trust_env=False)
    yield client
    client.close()


def asked(*images: bytes, text: str = QUESTION) -> dict[str, Any]:
    return {"role": "user", "content": text, "images": list(images)}


def chat(client: ollama.Client, *messages: dict[str, Any]) -> ollama.ChatResponse:
    return client.chat(MODEL, messages=list(messages), options=OPTIONS)


def test_show_says_that_it_sees(client: ollama.Client) -> None:
    assert "vision" in (client.show(MODEL).capabilities or [])
    assert "vision" not in (client.show(BLIND).capabilities or [])


def test_ollamas_chat_whole_and_streamed(client: ollama.Client, files: Files) -> None:
    whole = chat(client, asked(FIRST))
    pieces = client.chat(MODEL, messages=[asked(FIRST)], options=OPTIONS, stream=True)
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert chat(client, asked(SECOND)).message.content != whole.message.content
    parts = [image_part(FIRST), {"type": "text", "text": QUESTION}]
    with SeeingLlamaCpp(*files) as model:
        theirs = model.chat([{"role": "user", "content": parts}], 1)
    assert whole.prompt_eval_count == theirs["usage"]["prompt_tokens"]


def test_ollamas_generate(client: ollama.Client) -> None:
    whole = client.generate(MODEL, QUESTION, images=[FIRST], options=OPTIONS)
    assert whole.response == chat(client, asked(FIRST)).message.content


def test_openais_chat_is_told_the_same(served: DaemonProcess, client: ollama.Client) -> None:
    expected = chat(client, asked(FIRST)).message.content
    url = f"{served.url}/v1"
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as other:
        content: Any = [image_part(FIRST), {"type": "text", "text": QUESTION}]
        request: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_completion_tokens": OPTIONS["num_predict"],
        }
        whole = other.chat.completions.create(**request)
        chunks = other.chat.completions.create(stream=True, **request)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert whole.choices[0].message.content == streamed == expected


def test_anthropics_messages_are_told_the_same(
    served: DaemonProcess, client: ollama.Client
) -> None:
    expected = chat(client, asked(FIRST)).message.content
    inner = anthropic.DefaultHttpxClient(trust_env=False)
    source = {
        "type": "base64",
        "media_type": "image/png",
        "data": base64.b64encode(FIRST).decode(),
    }
    content: Any = [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]
    messages: Any = [{"role": "user", "content": content}]
    request: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": OPTIONS["num_predict"],
        "messages": messages,
        "extra_body": {"temperature": 0},
    }
    with anthropic.Anthropic(
        base_url=served.url, api_key="any", max_retries=0, http_client=inner
    ) as other:
        whole = other.messages.create(**request)
        with other.messages.stream(**request) as stream:
            streamed = "".join(stream.text_stream)
        counted = other.messages.count_tokens(model=MODEL, messages=messages)
    text = "".join(block.text for block in whole.content if block.type == "text")
    assert text == streamed == expected
    usage = whole.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_an_image_of_an_earlier_turn_comes_from_the_prefix_cache(
    served: DaemonProcess, client: ollama.Client
) -> None:
    first = chat(client, asked(SECOND))
    later = [asked(SECOND), {"role": "assistant", "content": first.message.content}]
    later.append({"role": "user", "content": "And now?"})
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0) as other:
        parts: Any = [image_part(SECOND), {"type": "text", "text": QUESTION}]
        messages: Any = [{"role": "user", "content": parts}, *later[1:]]
        answer = other.chat.completions.create(
            model=MODEL, messages=messages, temperature=0, max_completion_tokens=8
        )
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert (answer.usage.prompt_tokens_details.cached_tokens or 0) > 30
    assert answer.choices[0].message.content == chat(client, *later).message.content


def test_a_corrupt_image_is_a_clear_400(served: DaemonProcess) -> None:
    for data in (b"no image at all", FIRST[:200]):
        body = {"role": "user", "content": "x", "images": [base64.b64encode(data).decode()]}
        answer = post(served, "/api/chat", model=MODEL, messages=[body])
        assert answer.status_code == 400
        assert "image" in answer.json()["error"]


def test_a_model_without_eyes_is_a_clear_400(served: DaemonProcess) -> None:
    body = {"role": "user", "content": "x", "images": [base64.b64encode(FIRST).decode()]}
    answer = post(served, "/api/chat", model=BLIND, messages=[body])
    assert answer.status_code == 400
    assert "does not support vision" in answer.json()["error"]


def large_chat() -> dict[str, Any]:
    """An image of more than a thousand positions, which no other test has shown."""
    image = base64.b64encode(png(1008, 1008, 9)).decode()
    message = {"role": "user", "content": "x", "images": [image]}
    return {"model": MODEL, "messages": [message], "options": OPTIONS | {"num_ctx": 2048}}


def test_a_client_that_leaves_early(client: ollama.Client, served: DaemonProcess) -> None:
    with contextlib.suppress(httpx.ReadTimeout):
        httpx.post(f"{served.url}/api/chat", json=large_chat(), timeout=0.1, trust_env=False)
    assert chat(client, asked(FIRST)).done


def test_a_worker_killed_while_it_has_an_image_is_an_error(
    client: ollama.Client, served: DaemonProcess
) -> None:
    """Stopped before the image comes, so that it is not through with it when it is killed."""
    expected = chat(client, asked(FIRST)).message.content
    post(served, "/api/chat", **large_chat() | {"messages": []})
    served.child_running("backends.worker")
    # Of other tests' models too: which of them has this one, nobody outside can tell.
    workers = served.children_running("backends.worker")
    for worker in workers:
        worker.suspend()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, served, "/api/chat", **large_chat() | {"stream": True})
        time.sleep(0.3)
        for worker in workers:
            worker.kill()
        assert "model runner has unexpectedly stopped" in answer.result(30).text
    assert chat(client, asked(FIRST)).message.content == expected


def test_ollamas_own_files_have_the_tower_inside(
    client: ollama.Client, served: DaemonProcess, files: Files, tmp_path: pathlib.Path
) -> None:
    path = make_library_file(tmp_path / "both.gguf", KIND, *files)
    given = {path.name: upload(served, path)}
    assert post(served, "/api/create", model="inner", files=given).json() == {"status": "success"}
    assert "vision" in (client.show("inner").capabilities or [])
    found = client.chat("inner", messages=[asked(FIRST)], options=OPTIONS)
    expected = chat(client, asked(FIRST))
    assert found.message.content == expected.message.content
    assert found.prompt_eval_count == expected.prompt_eval_count


def test_hearth_run_takes_a_path(
    served: DaemonProcess, client: ollama.Client, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(FIRST)
    found = subprocess.run(
        [sys.executable, "-m", "daemon", "run", MODEL, f"{QUESTION} {path}"],
        cwd=ROOT,
        env=served.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip()
