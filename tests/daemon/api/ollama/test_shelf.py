from __future__ import annotations

import asyncio
import datetime
import hashlib
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import ollama
import pytest

from daemon.lan.addresses import local_addresses
from daemon.models.manifest import ImageConfig
from tests.daemon.api.rig import Rig, api_rig, lines


@pytest.fixture
async def rig(tmp_path: pathlib.Path) -> AsyncIterator[Rig]:
    async with api_rig(tmp_path) as rig:
        yield rig


async def test_an_empty_shelf_is_an_empty_list(rig: Rig) -> None:
    for path in ("/api/tags", "/api/ps"):
        answer = await rig.client.get(path)
        assert answer.text == '{"models":[]}'
        assert answer.headers["content-type"] == "application/json; charset=utf-8"


async def test_tags(rig: Rig) -> None:
    config = ImageConfig(model_format="gguf", model_family="llama", file_type="Q4_0")
    await rig.add_model("one", config=config)
    await rig.add_model("ns/Two:7B")
    entries = {entry["name"]: entry for entry in (await _models(rig, "/api/tags"))}
    assert entries.keys() == {"one:latest", "ns/Two:7B"}
    one = entries["one:latest"]
    assert one["model"] == "one:latest"
    assert len(one["digest"]) == 64
    assert one["size"] > 0
    assert one["details"]["quantization_level"] == "Q4_0"
    assert one["capabilities"] == ["completion"]
    datetime.datetime.fromisoformat(one["modified_at"])


async def _models(rig: Rig, path: str) -> list[dict[str, Any]]:
    return (await rig.client.get(path)).json()["models"]


async def test_ps_shows_what_is_loaded(rig: Rig) -> None:
    await rig.add_model("one")
    await rig.post("/api/generate", model="one", keep_alive=-1)
    (running,) = await _models(rig, "/api/ps")
    assert (running["name"], running["model"]) == ("one:latest", "one:latest")
    assert (running["context_length"], running["size_vram"]) == (512, 0)
    assert running["size"] > 0
    assert (running["runs_on"], running["serving"]) == ("asked for by configuration", "idle")
    assert datetime.datetime.fromisoformat(running["expires_at"]).year > 2300
    (listed,) = await _models(rig, "/api/tags")
    assert running["digest"] == listed["digest"]


@pytest.mark.parametrize("key", ["model", "name"])
async def test_show(rig: Rig, key: str) -> None:
    await rig.add_model("one", system="Be kind.", metadata={"general.architecture": "scripted"})
    shown = (await rig.post("/api/show", **{key: "one"})).json()
    assert shown["model_info"]["general.architecture"] == "scripted"
    assert shown["system"] == "Be kind."
    assert shown["capabilities"] == ["completion"]
    assert "SYSTEM" in shown["modelfile"]
    other = (await rig.post("/api/show", **{key: "one"}, system="Be brief.")).json()
    assert "Be brief." in other["modelfile"]
    assert other["system"] == "Be kind."


async def test_verbose_show_has_the_arrays(rig: Rig) -> None:
    await rig.add_model("one", metadata={"tokenizer.ggml.tokens": None})
    plain = (await rig.post("/api/show", model="one")).json()
    assert plain["model_info"]["tokenizer.ggml.tokens"] is None
    verbose = (await rig.post("/api/show", model="one", verbose=True)).json()
    assert verbose["model_info"]["tokenizer.ggml.tokens"] == ["a", "b"]


async def test_copy_and_delete(rig: Rig) -> None:
    await rig.add_model("one")
    copied = await rig.post("/api/copy", source="one", destination="two:v1")
    assert (copied.status_code, copied.content) == (200, b"")
    assert {entry["name"] for entry in await _models(rig, "/api/tags")} == {"one:latest", "two:v1"}
    for body in ({"name": "one"}, {"model": "two:v1"}):
        removed = await rig.client.request("DELETE", "/api/delete", json=body)
        assert (removed.status_code, removed.content) == (200, b"")
    assert await _models(rig, "/api/tags") == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/api/show", {}, 400, "model is required"),
        ("POST", "/api/show", {"model": "none"}, 404, "model 'none:latest' not found"),
        ("POST", "/api/show", {"model": "-x"}, 400, "invalid model name"),
        (
            "POST",
            "/api/show",
            {"model": "x:cloud"},
            403,
            "ollama cloud is disabled: remote model details are unavailable",
        ),
        (
            "POST",
            "/api/copy",
            {"source": "none", "destination": "y"},
            404,
            'model "none" not found',
        ),
        ("POST", "/api/copy", {"source": "-x", "destination": "y"}, 400, 'source "-x" is invalid'),
        (
            "POST",
            "/api/copy",
            {"source": "y", "destination": ""},
            400,
            'destination "" is invalid',
        ),
        ("DELETE", "/api/delete", {}, 400, "model is required"),
        ("DELETE", "/api/delete", {"name": "-x"}, 400, 'name "-x" is invalid'),
        ("DELETE", "/api/delete", {"name": "none"}, 404, "model 'none' not found"),
        ("POST", "/api/create", {}, 400, "invalid model name"),
        (
            "POST",
            "/api/create",
            {"model": "x", "files": {"../x": "sha256:" + "0" * 64}},
            400,
            "file path must be relative",
        ),
        ("POST", "/api/create", {"model": "x", "files": {"x": ""}}, 400, "invalid digest format"),
        ("POST", "/api/create", {"model": "x"}, 400, "neither 'from' or 'files' was specified"),
        (
            "POST",
            "/api/create",
            {"model": "x", "from": "y", "template": "{{ if", "stream": False},
            400,
            "template error: template: :1: unclosed action",
        ),
        ("POST", "/api/pull", {"model": ""}, 400, "invalid model name"),
        ("POST", "/api/pull", {"model": "a b"}, 400, "invalid model name"),
        ("POST", "/api/push", {"model": " "}, 400, "model is required"),
        ("POST", "/api/push", {"model": "x", "stream": False}, 404, "model 'x:latest' not found"),
        ("POST", "/api/import", {"model": "x", "path": "/none"}, 404, "/none"),
        ("POST", "/api/import", {"model": "x", "path": "none"}, 400, "absolute"),
    ],
)
async def test_refusals(
    rig: Rig, method: str, path: str, body: dict[str, Any], status: int, message: str
) -> None:
    answer = await rig.client.request(method, path, json=body)
    assert answer.status_code == status
    assert message in answer.json()["error"]
    assert answer.headers["content-type"].startswith("application/json")


async def test_a_persona_made_over_the_api(rig: Rig) -> None:
    await rig.add_model("one")
    made = await rig.client.post(
        "/api/create",
        json={"model": "kind", "from": "one", "system": "Be kind.", "parameters": {"seed": 1}},
    )
    assert made.headers["content-type"] == "application/x-ndjson"
    assert lines(made)[-1] == {"status": "success"}
    shown = (await rig.post("/api/show", model="kind")).json()
    assert shown["system"] == "Be kind."
    assert shown["details"]["parent_model"] == "one:latest"
    answer = await rig.post("/api/generate", model="kind", prompt="hi", stream=False)
    assert answer.json()["response"] == "Hello wörld."
    quiet = await rig.post("/api/create", model="kind2", **{"from": "one"}, stream=False)
    assert quiet.json() == {"status": "success"}
    assert quiet.headers["content-type"] == "application/json"


# ---- blobs ----


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


async def test_blobs_are_stored_once(rig: Rig) -> None:
    data = bytes(range(256)) * 40_000
    path = f"/api/blobs/{_digest(data)}"
    assert (await rig.client.head(path)).status_code == 404
    for expected in (201, 200):
        answer = await rig.client.post(path, content=data)
        assert (answer.status_code, answer.content) == (expected, b"")
    assert (await rig.client.head(path)).status_code == 200
    assert (await rig.client.head(path.replace("sha256:", "sha256-"))).status_code == 200
    assert (await rig.client.get(path)).status_code == 405


async def test_a_blob_larger_than_any_json_body(rig: Rig) -> None:
    data = bytes(70 << 20)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 1 << 20):
            yield data[start : start + (1 << 20)]

    answer = await rig.client.post(f"/api/blobs/{_digest(data)}", content=pieces())
    assert answer.status_code == 201


async def test_a_json_body_has_a_bound(rig: Rig) -> None:
    answer = await rig.client.post("/api/generate", content=b" " * (65 << 20))
    assert answer.status_code == 413
    assert answer.json()["error"]


async def test_a_blob_that_is_something_else(rig: Rig) -> None:
    answer = await rig.client.post(f"/api/blobs/sha256:{'0' * 64}", content=b"x")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith('digest mismatch, expected "sha256:000')
    assert (await rig.client.head(f"/api/blobs/{_digest(b'x')}")).status_code == 200


@pytest.mark.parametrize("digest", ["sha256:0", "md5:0", "..", "sha256:" + "g" * 64])
async def test_bad_digests(rig: Rig, digest: str) -> None:
    answer = await rig.client.post(f"/api/blobs/{digest}", content=b"x")
    assert answer.status_code in (400, 404)
    head = await rig.client.head(f"/api/blobs/sha256:{'z' * 64}")
    assert head.status_code == 400


async def test_an_upload_that_breaks_off_leaves_nothing(rig: Rig) -> None:
    port = int(rig.base.rsplit(":", 1)[-1])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /api/blobs/{_digest(b'y')} HTTP/1.1\r\nHost: x.local\r\nContent-Length: 9\r\n\r\n"
    writer.write(head.encode() + b"half")
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()
    await writer.wait_closed()
    folder = rig.services.store.blobs.folder
    async with asyncio.timeout(5):
        while any(folder.iterdir()):  # noqa: ASYNC110  nothing announces it
            await asyncio.sleep(0.01)


# ---- who may ----


async def test_routing(rig: Rig) -> None:
    for method, path, status, text in [
        ("GET", "/nothing", 404, "404 page not found"),
        ("GET", "/api/show", 405, "405 method not allowed"),
        ("HEAD", "/api/ps", 405, ""),
        ("GET", "/", 200, "Ollama is running"),
        ("HEAD", "/", 200, ""),
        ("HEAD", "/api/tags", 200, ""),
        ("HEAD", "/api/version", 200, ""),
    ]:
        answer = await rig.client.request(method, path)
        assert (answer.status_code, answer.text) == (status, text), path
    assert (await rig.client.get("/nothing")).headers["content-type"].startswith("text/plain")
    assert (await rig.client.get("/api/status")).json() == {
        "cloud": {"disabled": True, "source": "config"}
    }
    assert (await rig.client.post("/api/me")).status_code == 401
    assert (await rig.client.get("/healthz")).json() == {"status": "ok"}
    version = (await rig.client.get("/api/version")).json()["version"]
    assert all(part.isdigit() for part in version.split("."))


async def test_readiness(rig: Rig) -> None:
    assert (await rig.client.get("/readyz")).status_code == 503
    rig.services.readiness.is_ready = True
    assert (await rig.client.get("/readyz")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/create", {"model": "x", "from": "one"}),
        ("POST", "/api/copy", {"source": "one", "destination": "two"}),
        ("DELETE", "/api/delete", {"model": "one"}),
        ("POST", "/api/import", {"model": "x", "path": "/etc/hostname"}),
        ("POST", f"/api/blobs/sha256:{'0' * 64}", {}),
        ("HEAD", f"/api/blobs/sha256:{'0' * 64}", {}),
        ("POST", "/api/generate", {"model": "one", "keep_alive": 0}),
        ("POST", "/api/chat", {"model": "one", "keep_alive": "0s"}),
    ],
)
async def test_guests_may_not_change_anything(
    tmp_path: pathlib.Path, method: str, path: str, body: dict[str, Any]
) -> None:
    """Where nobody needs a key; no header makes a request this machine's."""
    async with api_rig(tmp_path, open_lan=True) as rig:
        await rig.add_model("one")
        headers = {"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1"}
        refused = await rig.client.request(method, path, json=body, headers=headers)
        assert refused.status_code == 403
        if method != "HEAD":
            assert "own machine" in refused.json()["error"]
        asked = {"model": "one", "prompt": "hi", "stream": False}
        allowed = await rig.client.post("/api/generate", json=asked, headers=headers)
        assert allowed.status_code == 200


async def test_a_connection_over_the_network_is_a_stranger(tmp_path: pathlib.Path) -> None:
    addresses = (a for a in local_addresses() if ":" not in a and not a.startswith("127."))
    if not (own := next(addresses, "")):
        pytest.skip("this machine has no address but loopback")
    async with api_rig(tmp_path, host="0.0.0.0", open_lan=True) as rig:
        await rig.add_model("one")
        port = rig.base.rsplit(":", 1)[-1]
        async with httpx.AsyncClient(base_url=f"http://{own}:{port}", timeout=30) as client:
            body = {"model": "one", "prompt": "hi"}
            assert (await client.post("/api/generate", json=body)).status_code == 200
            refused = await client.request("DELETE", "/api/delete", json={"model": "one"})
            assert refused.status_code == 403
        assert len(await _models(rig, "/api/tags")) == 1


async def test_openapi_names_what_is_served(rig: Rig) -> None:
    document = (await rig.client.get("/openapi/openapi.json")).json()
    assert "/api/generate" in document["paths"]
    body = document["paths"]["/api/chat"]["post"]["requestBody"]
    assert "ChatRequest" in str(body)


async def test_the_official_client_on_the_shelf(rig: Rig, tmp_path: pathlib.Path) -> None:
    await rig.add_model("one")
    file = tmp_path / "some.bin"
    await asyncio.to_thread(file.write_bytes, b"GGUF one")
    async with ollama.AsyncClient(host=rig.base) as client:
        assert [entry.model for entry in (await client.list()).models] == ["one:latest"]
        assert (await client.show("one")).modelinfo is not None
        await client.create("kind", from_="one", system="Be kind.")
        await client.copy("kind", "kinder")
        assert await client.create_blob(file) == _digest(b"GGUF one")
        await client.generate("kinder", "hi")
        assert [entry.model for entry in (await client.ps()).models] == ["kinder:latest"]
        await client.delete("kinder")
        with pytest.raises(ollama.ResponseError, match="not found"):
            await client.delete("kinder")
