from __future__ import annotations

import base64
import struct
from typing import Any

import openai
import pytest

from tests.daemon.api.rig import Rig


async def test_floats_base64_and_the_other_dialect_agree(
    rig: Rig, client: openai.AsyncOpenAI
) -> None:
    texts = ["abc", "", "xyz"]
    native = (await rig.post("/api/embed", model="vectors", input=texts)).json()
    # The official client asks for base64 by itself, and decodes it.
    answer = await client.embeddings.create(model="vectors", input=texts)
    assert [one.index for one in answer.data] == [0, 1, 2]
    for one, expected in zip(answer.data, native["embeddings"], strict=True):
        assert one.embedding == pytest.approx(expected)
    assert (answer.model, answer.object) == ("vectors", "list")
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == native["prompt_eval_count"]
    raw = (await rig.post("/v1/embeddings", model="vectors", input=texts)).json()
    assert [one["embedding"] for one in raw["data"]] == native["embeddings"]
    coded = await rig.post("/v1/embeddings", model="vectors", input="abc", encoding_format="BASE64")
    data = base64.b64decode(coded.json()["data"][0]["embedding"])
    assert struct.unpack("<8f", data) == pytest.approx(native["embeddings"][0])


async def test_dimensions(client: openai.AsyncOpenAI) -> None:
    for encoding in ("float", "base64"):
        answer = await client.embeddings.create(
            model="vectors", input="some text", dimensions=3, encoding_format=encoding
        )
        (vector,) = [one.embedding for one in answer.data]
        if isinstance(vector, str):
            vector = struct.unpack("<3f", base64.b64decode(vector))
        assert len(vector) == 3
        assert sum(value * value for value in vector) == pytest.approx(1)


async def test_an_empty_text_is_a_text(rig: Rig) -> None:
    answer = await rig.post("/v1/embeddings", model="vectors", input="")
    assert len(answer.json()["data"]) == 1


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "invalid input"),
        ({"input": []}, 400, "invalid input"),
        ({"input": [1, 2]}, 400, "invalid input type"),
        ({"input": [["x"]]}, 400, "invalid input type"),
        (
            {"input": "x", "encoding_format": "int8"},
            400,
            "Invalid value for 'encoding_format' = int8. Supported values: ['float', 'base64'].",
        ),
        ({"input": "x", "model": "none"}, 404, "model 'none' not found"),
        ({"input": "x", "model": ""}, 400, "model is required"),
        ({"input": "x", "model": "plain"}, 501, "this model cannot make embeddings"),
    ],
)
async def test_refusals(rig: Rig, body: dict[str, Any], status: int, message: str) -> None:
    answer = await rig.post("/v1/embeddings", **{"model": "vectors"} | body)
    assert (answer.status_code, answer.json()["error"]["message"]) == (status, message)
