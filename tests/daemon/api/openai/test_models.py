from __future__ import annotations

import pathlib
import time

import anthropic
import openai
import pytest

from tests.daemon.api.rig import Rig, api_rig

LONG = "hf.co/someone/Some-Model-GGUF:Q4_K_M"


async def test_the_shelf_in_the_order_of_the_other_dialect(
    rig: Rig, client: openai.AsyncOpenAI
) -> None:
    await rig.add_model("someone/theirs:7b")
    await rig.add_model(LONG)
    models = (await client.models.list()).data
    tags = (await rig.client.get("/api/tags")).json()["models"]
    assert [model.id for model in models] == [entry["name"] for entry in tags]
    owners = {model.id: model.owned_by for model in models}
    assert owners["someone/theirs:7b"] == "someone"
    assert owners[LONG] == "someone"
    assert owners["plain:latest"] == "library"
    assert all(abs(model.created - time.time()) < 100 for model in models)
    assert {model.object for model in models} == {"model"}


async def test_the_shelf_through_anthropics_client(rig: Rig, client: openai.AsyncOpenAI) -> None:
    theirs = {model.id: model.created for model in (await client.models.list()).data}
    async with anthropic.AsyncAnthropic(base_url=rig.base, api_key="any") as other:
        ours = [model async for model in other.models.list()]
        one = await other.models.retrieve("plain")
    assert {model.id: int(model.created_at.timestamp()) for model in ours} == theirs
    assert {(model.type, model.display_name == model.id) for model in ours} == {("model", True)}
    assert (one.id, one.display_name) == ("plain", "plain")


@pytest.mark.parametrize("asked", ["plain", "PLAIN:latest", "someone/theirs:7b", LONG])
async def test_one_model_by_whatever_name(rig: Rig, client: openai.AsyncOpenAI, asked: str) -> None:
    await rig.add_model("someone/theirs:7b")
    await rig.add_model(LONG)
    model = await client.models.retrieve(asked)
    assert (model.id, model.object) == (asked, "model")
    plain = await rig.client.get(f"/v1/models/{asked}")
    assert plain.json()["id"] == asked


async def test_a_model_that_is_not_there(client: openai.AsyncOpenAI, rig: Rig) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.models.retrieve("none")
    assert missing.value.code == "model_not_found"
    answer = await rig.client.get("/v1/models/a/b/c/d/e")
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "invalid model name")
    answer = await rig.client.get("/v1/models/none")
    assert answer.json()["error"]["message"] == "model 'none:latest' not found"


async def test_an_empty_shelf_is_an_empty_list(tmp_path: pathlib.Path) -> None:
    async with api_rig(tmp_path) as rig:
        answer = await rig.client.get("/v1/models")
        body = answer.json()
        assert (body["object"], body["data"], body["has_more"]) == ("list", [], False)
        assert answer.headers["content-type"].startswith("application/json")


async def test_paths_and_methods_beside(rig: Rig) -> None:
    assert (await rig.client.get("/v1/chat/completions")).status_code == 405
    assert (await rig.client.post("/v1/nothing")).status_code == 404
