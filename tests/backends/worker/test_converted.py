"""A worker on each engine and a model that the converter wrote: text in, text out."""

from __future__ import annotations

import pathlib
import time

import pytest

from backends.types import Cancel, Chat, Delta, FromWorker, Limits, Loaded, Progress, Sampling
from converters.convert import Request, convert
from converters.progress import Progress as ConversionProgress
from tests.backends.worker.worker_client import SCRIPTED, WorkerClient, text_of, user
from tests.models.random_gguf import make_gguf

GREEDY = Sampling(temperature=0.0)


BACKENDS = {"onnx-cpu": "onnx", "mlx": "mlx"}


@pytest.fixture(scope="module", params=["llama on onnx-cpu", "gpt2 on onnx-cpu", "gpt2 on mlx"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("converted")
    tokenizer, _, target = request.param.split()
    architecture = "llama" if tokenizer == "llama" else "qwen2"
    path = make_gguf(
        folder / "m.gguf",
        architecture=architecture,
        types="Q8_0",
        tokenizer=tokenizer,
        pre="qwen2",
    )
    wanted = Request(source="0" * 64, target=target, final=folder / target)
    with path.open("rb") as file:
        convert(file, wanted, ConversionProgress())
    return wanted.final


@pytest.fixture
def worker(artifact: pathlib.Path, tmp_path: pathlib.Path):
    with WorkerClient(SCRIPTED, tmp_path / "log") as client:
        loaded = client.load(artifact, BACKENDS[artifact.name], rows=2, context_length=256)
        assert isinstance(loaded, Loaded), loaded
        assert "generate" in loaded.capabilities
        yield client


def ask(name: str, text: str, max_tokens: int = 24, sampling: Sampling = GREEDY, **options) -> Chat:
    return Chat(
        request_id=name,
        messages=user(text),
        limits=Limits(max_tokens=max_tokens, context_length=256),
        sampling=sampling,
        **options,
    )


def last_of(messages: list[FromWorker]) -> Delta:
    last = messages[-1]
    assert isinstance(last, Delta), last
    return last


def test_alone_and_interleaved_answers_are_the_same(worker: WorkerClient) -> None:
    first, second = ask("a", "Why is the sky blue?"), ask("b", "Two", sampling=Sampling(seed=7))
    worker.send(first)
    alone_first = worker.read_until_closed("a")["a"]
    worker.send(second)
    alone_second = worker.read_until_closed("b")["b"]
    worker.send(first)
    worker.send(second)
    both = worker.read_until_closed("a", "b")
    assert text_of(both["a"]) == text_of(alone_first) != ""
    assert text_of(both["b"]) == text_of(alone_second) != ""
    assert any(isinstance(message, Progress) for message in alone_first)


def test_logprobs_usage_and_context(worker: WorkerClient) -> None:
    worker.send(ask("a", "Hello", 8, logprobs=True, top_logprobs=3, want_context=True))
    messages = worker.read_until_closed("a")["a"]
    last = last_of(messages)
    entries = [entry for m in messages if isinstance(m, Delta) for entry in m.logprobs]
    assert last.usage is not None
    if last.finish == "length":
        assert len(entries) == last.usage.completion_tokens == 8
    whole = b"".join(entry.data for entry in entries).decode("utf-8", "replace")
    assert whole == text_of(messages)
    assert all(entry.logprob <= 0 and len(entry.top) == 3 for entry in entries)
    assert len(last.context_ids) == last.usage.prompt_tokens + len(entries)


def test_a_stop_string_frees_the_row_early(worker: WorkerClient) -> None:
    worker.send(ask("a", "Tell me", 40))
    whole = text_of(worker.read_until_closed("a")["a"])
    stop = whole[len(whole) // 2 :][:2]
    worker.send(ask("b", "Tell me", 40, stop=(stop,)))
    messages = worker.read_until_closed("b")["b"]
    assert text_of(messages) == whole[: whole.index(stop)]
    assert last_of(messages).finish == "stop"


def test_cancel_and_end_of_file_in_mid_answer(worker: WorkerClient) -> None:
    worker.send(ask("a", "On and on", 200))
    worker.read_first(Delta)
    worker.send(Cancel(request_id="a"))
    last = last_of(worker.read_until_closed("a")["a"])
    assert last.finish in ("cancelled", "stop")
    worker.send(ask("b", "On and on", 200))
    worker.read_first(Progress)
    started = time.monotonic()
    worker.connection.close()
    assert worker.exit_code(5) == 0
    assert time.monotonic() - started < 4
