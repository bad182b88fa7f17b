from __future__ import annotations

import asyncio
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import ollama
import pytest

from backends.scripted.script import Script
from daemon.api import vectors
from tests.daemon.api.rig import Rig, api_rig

# Ids are bytes and BOS; a vector counts them by their remainder, so its length tells it all.
VECTORS = Script(vector_size=8, context_length=64)


@pytest.fixture
async def rig(tmp_path: pathlib.Path) -> AsyncIterator[Rig]:
    async with api_rig(tmp_path) as rig:
        await rig.add_model("vectors", script=VECTORS)
        await rig.add_model("talker")
        yield rig


async def embed(rig: Rig, value: Any, **fields: Any) -> dict[str, Any]:
    answer = await rig.post("/api/embed", model="vectors", input=value, **fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def length(vector: list[float]) -> float:
    return sum(value * value for value in vector) ** 0.5


async def test_one_text_and_several(rig: Rig) -> None:
    one = await embed(rig, "abc")
    assert [len(vector) for vector in one["embeddings"]] == [8]
    assert length(one["embeddings"][0]) == pytest.approx(1)
    assert (one["model"], one["prompt_eval_count"]) == ("vectors", 4)
    assert min(one["total_duration"], one["load_duration"]) > 0
    several = await embed(rig, ["abc", "", "xyz"])
    assert several["embeddings"][0] == one["embeddings"][0]
    assert (len(several["embeddings"]), several["prompt_eval_count"]) == (3, 4 + 1 + 4)


@pytest.mark.parametrize("empty", [{}, {"input": None}, {"input": ""}, {"input": []}])
async def test_nothing_to_embed_loads_the_model(rig: Rig, empty: dict[str, Any]) -> None:
    answer = await rig.post("/api/embed", model="vectors", **empty)
    assert answer.json() == {"model": "vectors", "embeddings": []}
    assert len(rig.services.residency.loaded()) == 1


@pytest.mark.parametrize("wrong", [7, {"text": "x"}, ["x", 7], [["x"]], True])
async def test_other_inputs_are_refused(rig: Rig, wrong: Any) -> None:
    answer = await rig.post("/api/embed", model="missing", input=wrong)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid input type")


@pytest.mark.parametrize("dimensions", [1, 3, 7])
async def test_dimensions_cut_and_normalise_again(rig: Rig, dimensions: int) -> None:
    whole = (await embed(rig, "some text"))["embeddings"][0]
    (cut,) = (await embed(rig, "some text", dimensions=dimensions))["embeddings"]
    norm = length(whole[:dimensions]) or 1
    assert cut == pytest.approx([value / norm for value in whole[:dimensions]], abs=1e-6)


@pytest.mark.parametrize("dimensions", [0, 8, 9, -1])
async def test_dimensions_without_meaning_are_ignored(rig: Rig, dimensions: int) -> None:
    assert await _vector(rig, dimensions=dimensions) == await _vector(rig)


async def _vector(rig: Rig, **fields: Any) -> list[float]:
    return (await embed(rig, "some text", **fields))["embeddings"][0]


async def test_long_texts_are_cut_or_refused(rig: Rig) -> None:
    cut = await embed(rig, "x" * 500)
    assert cut["prompt_eval_count"] == 64
    assert cut["embeddings"] == (await embed(rig, "x" * 63))["embeddings"]
    answer = await rig.post("/api/embed", model="vectors", input=["a", "x" * 500], truncate=False)
    assert answer.status_code == 400
    assert answer.json()["error"] == "the input length exceeds the context length"


async def test_num_ctx_is_taken_as_it_is(rig: Rig) -> None:
    small = await embed(rig, "why is the sky blue?", options={"num_ctx": 3})
    assert small["embeddings"] == (await embed(rig, "wh"))["embeddings"]
    thrice = await embed(rig, ["why is the sky blue?" * 9] * 3, options={"num_ctx": 30})
    assert thrice["prompt_eval_count"] == 90
    for num_ctx in (1, 0, -5):
        answer = await rig.post(
            "/api/embed", model="vectors", input="x", options={"num_ctx": num_ctx}
        )
        assert answer.status_code == 400
        assert answer.json()["error"] == "input after truncation exceeds maximum context length"


async def test_many_texts_go_in_several_questions(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "TEXTS_PER_QUESTION", 4)
    texts = ["x" * n for n in range(1, 12)]
    together = await embed(rig, texts)
    assert together["prompt_eval_count"] == sum(range(2, 13))
    alone = [(await embed(rig, text))["embeddings"][0] for text in texts]
    assert together["embeddings"] == alone


async def test_the_older_route(rig: Rig) -> None:
    answer = await rig.post("/api/embeddings", model="vectors", prompt="abc")
    assert answer.json() == {"embedding": (await embed(rig, "abc"))["embeddings"][0]}
    assert (await rig.post("/api/embeddings", model="vectors")).json() == {"embedding": []}
    answer = await rig.post("/api/embeddings", model="vectors", prompt="x" * 100)
    assert answer.status_code == 400
    assert "exceeds the context length" in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/api/embed", {"input": "x"}, 404, "model '' not found"),
        ("/api/embeddings", {"prompt": "x"}, 400, "model is required"),
        ("/api/embed", {"model": "nix", "input": "x"}, 404, 'model "nix" not found, try pulling'),
        ("/api/embeddings", {"model": "nix"}, 404, 'model "nix" not found, try pulling it first'),
        ("/api/embed", {"model": "a//b", "input": "x"}, 400, "invalid model name"),
        ("/api/embed", {"model": "vectors", "options": {"num_ctx": "x"}}, 500, "must be of type"),
        ("/api/embed", {"model": "talker", "input": "x"}, 501, "cannot make embeddings"),
    ],
)
async def test_refusals(rig: Rig, path: str, body: dict[str, Any], status: int, text: str) -> None:
    answer = await rig.post(path, **body)
    assert answer.status_code == status
    assert text in answer.json()["error"]


async def test_the_official_client(rig: Rig) -> None:
    async with ollama.AsyncClient(host=rig.base) as client:
        answer = await client.embed("vectors", ["abc", "xyz"])
        older = await client.embeddings("vectors", "abc")
    assert [len(vector) for vector in answer["embeddings"]] == [8, 8]
    assert list(older["embedding"]) == list(answer["embeddings"][0])


async def test_many_clients_at_once(rig: Rig) -> None:
    answers = await asyncio.gather(*(embed(rig, ["x" * n, "y" * n]) for n in range(1, 25)))
    for n, answer in enumerate(answers, 1):
        assert answer["prompt_eval_count"] == 2 * (n + 1)
        assert answer["embeddings"] == (await embed(rig, ["x" * n, "y" * n]))["embeddings"]
