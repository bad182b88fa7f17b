"""A rank model on a real daemon, by the routes that clients of other servers know."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.daemon_process import DaemonProcess
from tests.models.random_architectures import Value
from tests.models.random_gguf import make_gguf

DOCUMENTS = ["the sky is blue", "hello", "a long text about the sea and the sky and more"]


TEMPLATE = "<|im_start|>user\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """`rank` is a BERT with a rank head, `judge` says yes or no as Qwen 3's rerankers do."""
    folder = tmp_path_factory.mktemp("rerank")
    frame: dict[str, Value] = {"tokenizer.ggml.add_eos_token": True}
    bert = folder / "rank.gguf"
    make_gguf(bert, architecture="bert-rank", types="F32", kv_heads=4, metadata=frame)
    qwen = folder / "judge.gguf"
    form: dict[str, Value] = {"tokenizer.chat_template.rerank": TEMPLATE}
    make_gguf(
        qwen, architecture="qwen3-rank", types="F32", tokenizer="gpt2", pre="qwen2", metadata=form
    )
    with DaemonProcess(folder / "home", HEARTH_CREATE_PATH="1") as process:
        for path in (bert, qwen):
            modelfile = folder / f"{path.stem}.modelfile"
            modelfile.write_text(f"FROM {path}\n")
            body = {"name": path.stem, "path": str(modelfile), "stream": False}
            made = httpx.post(f"{process.url}/api/create", json=body, timeout=60)
            assert made.json()["status"] == "success", made.text
        yield process


def asked(daemon: DaemonProcess, path: str = "/v1/rerank", **changed: Any) -> httpx.Response:
    body = {"model": "rank", "query": "why is the sky blue", "documents": DOCUMENTS} | changed
    return httpx.post(f"{daemon.url}{path}", json=body, timeout=60)


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/api/rerank"])
def test_documents_come_in_the_order_of_their_scores(daemon: DaemonProcess, path: str) -> None:
    raw = asked(daemon, path, raw_scores=True).json()
    scores = [one["relevance_score"] for one in raw["results"]]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 3
    assert sorted(one["index"] for one in raw["results"]) == [0, 1, 2]
    assert raw["usage"]["prompt_tokens"] > 9 and raw["usage"]["dropped_tokens"] == 0
    told = asked(daemon, path, top_n=2, return_documents=True).json()
    assert len(told["results"]) == 2
    for one, score in zip(told["results"], scores, strict=False):
        assert one["relevance_score"] == pytest.approx(1 / (1 + math.exp(-score)))
        assert one["document"]["text"] == DOCUMENTS[one["index"]]


def test_probabilities_stay_as_they_are(daemon: DaemonProcess) -> None:
    squashed, raw = (
        [one["relevance_score"] for one in answer.json()["results"]]
        for answer in (asked(daemon, model="judge"), asked(daemon, model="judge", raw_scores=True))
    )
    assert squashed == raw and all(0 < score < 1 for score in raw)


def test_many_documents_score_as_they_do_alone(daemon: DaemonProcess) -> None:
    many = [{"text": f"{DOCUMENTS[place % 3]} {place}"} for place in range(300)]
    found = {one["index"]: one for one in asked(daemon, documents=many).json()["results"]}
    assert len(found) == 300
    for place in (0, 255, 256, 299):
        alone = asked(daemon, documents=[many[place]]).json()["results"][0]
        expected = pytest.approx(alone["relevance_score"], abs=1e-5)
        assert found[place]["relevance_score"] == expected


def test_what_does_not_fit_is_cut_and_told_or_refused(daemon: DaemonProcess) -> None:
    long = ["sky " * 5000, "hello"]
    cut = asked(daemon, documents=long)
    assert cut.status_code == 200 and cut.json()["usage"]["dropped_tokens"] > 0
    refused = asked(daemon, documents=long, truncate=False)
    assert refused.status_code == 400
    assert "document 0 and the query exceed" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query": ""}, "query is required"),
        ({"documents": []}, "documents are required"),
        ({"documents": ["a", 1]}, "documents[1] is neither a text nor an object with a text"),
        ({"documents": [{"body": "a"}]}, "documents[0] is neither"),
        ({"top_n": -1}, "top_n must not be negative"),
        ({"model": "ember"}, '"ember" does not support rerank'),
        ({"model": "nobody"}, "model 'nobody' not found"),
    ],
)
def test_refusals(daemon: DaemonProcess, changed: dict[str, Any], message: str) -> None:
    theirs, ours = asked(daemon, **changed), asked(daemon, "/api/rerank", **changed)
    assert theirs.status_code == ours.status_code == (404 if "not found" in message else 400)
    assert message in theirs.json()["error"]["message"]
    assert message in ours.json()["error"]


def test_the_shelf_says_what_the_model_can(daemon: DaemonProcess) -> None:
    shown = httpx.post(f"{daemon.url}/api/show", json={"model": "rank"}, timeout=60).json()
    assert shown["capabilities"] == ["rerank"]
