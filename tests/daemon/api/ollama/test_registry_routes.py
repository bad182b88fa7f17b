"""`/api/pull` and `/api/push` on a real socket, against a registry on loopback."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.daemon.api.rig import Rig, api_rig, lines
from tests.registry.server import Registry

# Without weights, so that nothing is converted: what is tested here is the way in and out.
LAYERS = [("system", b"Be brief."), ("license", b"L" * 900_000)]


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    async with Registry() as registry:
        registry.chunk_bytes = 16 << 10
        registry.add_model("library/m", "latest", LAYERS, {"model_format": "gguf"})
        yield registry


@pytest.fixture
async def rig(tmp_path: pathlib.Path) -> AsyncIterator[Rig]:
    async with api_rig(tmp_path) as rig:
        yield rig


def body(registry: Registry, model: str = "m", **more: Any) -> dict[str, Any]:
    return {"model": f"{registry.host}/library/{model}", "insecure": True} | more


async def test_a_pull_as_a_stream(rig: Rig, registry: Registry) -> None:
    answer = await rig.post("/api/pull", **body(registry))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    found = lines(answer)
    assert found[0] == {"status": "pulling manifest"}
    assert found[-1] == {"status": "success"}
    assert all(line["total"] for line in found if "digest" in line)
    tags = (await rig.client.get("/api/tags")).json()["models"]
    assert [model["name"] for model in tags] == [f"{registry.host}/library/m:latest"]


async def test_a_pull_as_one_object(rig: Rig, registry: Registry) -> None:
    fields = body(registry, stream=False, username="u", password="p")
    fields["name"] = fields.pop("model")
    answer = await rig.post("/api/pull", **fields)
    assert answer.json() == {"status": "success"}
    assert answer.headers["content-type"] == "application/json"


async def test_a_failure_is_a_line_or_a_status(rig: Rig, registry: Registry) -> None:
    expected = {"error": "pull model manifest: file does not exist"}
    streamed = await rig.post("/api/pull", **body(registry, "absent"))
    assert streamed.status_code == 200
    assert lines(streamed) == [{"status": "pulling manifest"}, expected]
    whole = await rig.post("/api/pull", **body(registry, "absent", stream=False))
    assert (whole.status_code, whole.json()) == (500, expected)


async def test_a_client_that_leaves_stops_the_pull(rig: Rig, registry: Registry) -> None:
    registry.faults.bytes_per_second = 300_000
    request = rig.client.stream("POST", "/api/pull", json=body(registry))
    async with request as answer:
        async for line in answer.aiter_lines():
            if '"completed"' in line:
                break
    await asyncio.sleep(0.3)
    sent = registry.sent_bytes.total()
    await asyncio.sleep(0.4)
    assert registry.sent_bytes.total() == sent < 900_000
    registry.faults.bytes_per_second = 0
    again = await rig.post("/api/pull", **body(registry))
    assert lines(again)[-1] == {"status": "success"}


async def test_a_push(rig: Rig, registry: Registry) -> None:
    await rig.post("/api/pull", **body(registry))
    manifest = registry.manifests.pop(("library/m", "latest"))
    registry.blobs.clear()
    answer = await rig.post("/api/push", **body(registry))
    found = lines(answer)
    assert found[0] == {"status": "retrieving manifest"}
    assert found[-2:] == [{"status": "pushing manifest"}, {"status": "success"}]
    assert registry.manifests["library/m", "latest"] == manifest
    assert len(registry.blobs) == 3


async def test_a_push_of_nothing(rig: Rig, registry: Registry) -> None:
    found = lines(await rig.post("/api/push", **body(registry, "absent")))
    assert [line.get("status") for line in found[:2]] == [
        "retrieving manifest",
        "couldn't retrieve manifest",
    ]
    assert "not found" in found[-1]["error"]


@pytest.mark.parametrize("model", ["x:cloud", "x:8b-cloud"])
async def test_models_of_a_cloud_are_refused(rig: Rig, model: str) -> None:
    answer = await rig.post("/api/pull", model=model)
    assert answer.status_code == 403
    assert "cloud is disabled" in answer.json()["error"]


async def test_create_pulls_what_it_is_made_from(rig: Rig, registry: Registry) -> None:
    """Over http, which create cannot ask for: the registry is not reached, and says so."""
    source = f"{registry.host}/library/m"
    answer = await rig.post("/api/create", model="p", **{"from": source})
    found = lines(answer)
    assert found[0] == {"status": "pulling manifest"}
    assert "pull model manifest:" in found[-1]["error"]
