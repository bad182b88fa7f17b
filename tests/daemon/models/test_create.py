"""Creating: layers, merging, statuses, refusals, and that nothing half made is ever seen."""

import asyncio
import contextlib
import json
import pathlib
from collections.abc import AsyncIterator

import pytest

from daemon.errors import DaemonError, Internal, Invalid, NotFound, NotYet, StoreReadOnly
from daemon.models import manifest as media
from daemon.models.create import Creator
from daemon.models.create_request import CreateRequest
from daemon.models.manifest import StoredMessage, decode_config
from daemon.models.name import parse_name
from daemon.models.resolved import ResolvedModel
from daemon.models.store import Store
from tests.daemon.models.shelf import TARGET, Shelf, gguf, hex_of, until


@pytest.fixture
async def shelf(tmp_path: pathlib.Path) -> AsyncIterator[Shelf]:
    shelf = Shelf(tmp_path)
    yield shelf
    await shelf.conversions.close()


def resolve(shelf: Shelf, name: str) -> ResolvedModel:
    return shelf.store.resolve(parse_name(name))


async def test_from_a_file(shelf: Shelf) -> None:
    data = gguf(steps=3)
    statuses = await shelf.make("M", data, system="be kind", license="MIT",
                                parameters={"temperature": 1.0, "stop": ["a"], "seed": None},
                                messages=[StoredMessage(role="User", content="hi")])  # fmt: skip
    model = resolve(shelf, "m")
    assert statuses[0] == "parsing GGUF"
    assert f"converting to {TARGET}" in statuses
    assert statuses[-2:] == ["writing manifest", "success"]
    layers = [layer.media_type for layer in model.manifest.layers]
    assert layers == [media.MODEL, media.SYSTEM, media.LICENSE, media.PARAMETERS, media.MESSAGES]
    weights = model.manifest.layers[0]
    assert f"using existing layer {weights.digest}" in statuses
    assert all(
        f"creating new layer {layer.digest}" in statuses for layer in model.manifest.layers[1:]
    )
    assert (weights.digest, weights.source) == (f"sha256:{hex_of(data)}", "a.gguf")
    assert (model.system, model.licenses) == ("be kind", ("MIT",))
    assert model.parameters == {"stop": ["a"], "temperature": 1}
    assert model.messages == (StoredMessage(role="user", content="hi"),)
    config = json.loads(shelf.store.blobs.path(model.manifest.config.digest[7:]).read_bytes())
    assert config == {
        "model_format": "gguf", "model_family": "llama", "model_families": ["llama"],
        "model_type": "1.1B", "file_type": "Q4_K_M", "architecture": "amd64", "os": "linux",
    }  # fmt: skip
    assert shelf.conversions.artifact(hex_of(data), TARGET) is not None


async def test_from_a_model_converts_nothing(shelf: Shelf) -> None:
    await shelf.make("base", gguf(), system="old", license="MIT", renderer="r", parser="p",
                     parameters={"stop": ["a", "b"], "top_k": 5},
                     messages=[StoredMessage(role="user", content="hi")])  # fmt: skip
    statuses = await shelf.create(model="p1", source="BASE", system="new", license=["BSD", "MIT"],
                                  parameters={"stop": ["c"], "seed": 7})  # fmt: skip
    base, model = resolve(shelf, "base"), resolve(shelf, "p1")
    assert len(shelf.runs()) == 1
    assert not any("convert" in status or "pars" in status for status in statuses)
    assert (model.system, model.licenses) == ("new", ("MIT", "BSD"))
    assert model.parameters == {"stop": ["c"], "seed": 7, "top_k": 5}
    assert model.messages == base.messages
    assert model.model_digest == base.model_digest
    assert model.parent_model == "base:latest"
    assert (model.config.renderer, model.config.parser) == ("r", "p")
    assert model.config.model_type == "1.1B"
    await shelf.create(model="p2", source="p1")
    assert resolve(shelf, "p2").system == "new"
    assert [layer.source for layer in resolve(shelf, "p2").manifest.layers] == ["p1:latest"] * 6


async def test_info_and_config_fields(shelf: Shelf) -> None:
    info = {"capabilities": ["tools"], "model_family": "f", "quantization_level": "Q9",
            "parameter_size": "9B", "context_length": 77, "embedding_length": 5.0, "base_name": "b",
            "unknown": object}  # fmt: skip
    await shelf.make("m", gguf(), info=info, requires="0.14.0")
    config = resolve(shelf, "m").config
    assert (config.capabilities, config.model_family, config.file_type) == (("tools",), "f", "Q9")
    assert (config.model_type, config.context_length, config.embedding_length) == ("9B", 77, 5)
    assert (config.base_name, config.requires) == ("b", "0.14.0")


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"model": ""}, Invalid, "invalid model name"),
        ({"model": "../x"}, Invalid, "invalid model name"),
        ({"files": {"/etc/passwd": "sha256:" + "0" * 64}}, Invalid, "file path must be relative"),
        ({"files": {"a/../../b": "sha256:" + "0" * 64}}, Invalid, "file path must be relative"),
        ({"files": {"a\\..\\b": "sha256:" + "0" * 64}}, Invalid, "file path must be relative"),
        ({"files": {"C:a": "sha256:" + "0" * 64}}, Invalid, "file path must be relative"),
        ({"files": {"a": ""}}, Invalid, "invalid digest format"),
        ({"draft_quantize": "Q8_0"}, Invalid, "--draft-quantize requires a DRAFT model"),
    ],
)
async def test_refused_before_the_stream(
    shelf: Shelf, fields: dict[str, object], error: type[DaemonError], text: str
) -> None:
    request = CreateRequest(**({"model": "m"} | fields))  # pyright: ignore[reportArgumentType]
    with pytest.raises(error, match=text):
        shelf.creator.create(request)


DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({}, Invalid, "neither 'from' or 'files' was specified"),
        ({"files": {}}, Invalid, "no files provided to convert"),
        ({"source": "../x"}, Invalid, "invalid model name"),
        ({"source": "absent"}, NotFound, "model 'absent' not found"),
        ({"files": {"a.gguf": DIGEST}}, Internal, f"open sha256-{'0' * 64}: no such file"),
        ({"files": {"a.safetensors": DIGEST}}, Internal, f"open sha256-{'0' * 64}: no such file"),
        ({"files": {"config.json": DIGEST, "w/a.bin": DIGEST}}, NotYet, "w/a.bin holds pickled weights"),
        ({"files": {"a-00001-of-00002.gguf": DIGEST}}, Invalid, "a-00002-of-00002.gguf is missing"),
        ({"source": "x", "files": {"a.gguf": DIGEST}}, Internal, f"open sha256-{'0' * 64}: no such file"),
        ({"source": "x", "template": "a\n{{ if }}"}, Invalid, "template error: template: :2: missing"),
        ({"source": "x", "quantize": "Q9"}, Internal, "unsupported quantization type Q9 - supported"),
        ({"source": "x", "quantization": "q9"}, Internal, "unsupported quantization type q9 - supp"),
        ({"source": "x", "quantize": "Q4_K_M"}, NotFound, "model 'x' not found"),
        ({"source": "x", "adapters": {"a": DIGEST}}, NotFound, "model 'x' not found"),
        ({"source": "x", "draft_files": {"a": DIGEST}}, NotYet, "'draft_files'"),
        ({"source": "x", "remote_host": "h"}, NotYet, "'remote_host'"),
        ({"source": "x", "parameters": {"a": {}}}, Invalid, "parameter 'a'"),
        ({"source": "x", "parameters": {"a": [["b"]]}}, Invalid, "parameter 'a'"),
        ({"source": "x", "parameters": {"a": float("inf")}}, Invalid, "parameter 'a'"),
        ({"source": "x", "messages": [StoredMessage(role="x")]}, Invalid, "message role"),
        ({"source": "x", "info": {"base_name": 3}}, Invalid, '"base_name" must be a string'),
        ({"source": "x", "info": {"context_length": "3"}}, Invalid, '"context_length" must be a number'),
        ({"source": "x", "info": {"context_length": -3}}, Invalid, "must be a non-negative integer"),
        ({"source": "x", "info": {"context_length": 1.5}}, Invalid, "must be a non-negative integer"),
        ({"source": "x", "info": {"capabilities": "x"}}, Invalid, '"capabilities" must be a list'),
    ],
)  # fmt: skip
async def test_refused_in_the_stream(
    shelf: Shelf, fields: dict[str, object], error: type[DaemonError], text: str
) -> None:
    with pytest.raises(error, match=text):
        await shelf.create(model="m", **fields)
    assert shelf.store.names() == []


@pytest.mark.parametrize(
    ("data", "name", "error", "text"),
    [
        (b"PK\3\4", "a.gguf", Invalid, "supplied file was not in GGUF format"),
        (b"PK\3\4", "a.bin", Invalid, "unknown type"),
        (b"", "a.bin", Invalid, "unknown type"),
        (gguf(fail="malformed", fails_at="inspect"), "a.gguf", Invalid, "says malformed"),
        (gguf(fail="unsupported"), "a.gguf", NotYet, "says unsupported"),
        (gguf(then="die"), "a.gguf", DaemonError, "SIGKILL"),
        (gguf(kind="adapter"), "a.gguf", NotYet, "adapter"),
        (gguf(refused=True), "a.gguf", NotYet, "no recipe"),
    ],
)
async def test_refused_weights_leave_no_name(
    shelf: Shelf, data: bytes, name: str, error: type[DaemonError], text: str
) -> None:
    files = {name: f"sha256:{await shelf.put(data)}"}
    with pytest.raises(error, match=text):
        await shelf.create(model="m", files=files, system="s")
    assert shelf.store.names() == []
    assert shelf.staging() == []
    assert not shelf.store.blobs.has(hex_of(b"s"))


@pytest.mark.parametrize("stop_at", range(12))
async def test_leaving_at_any_status_shows_nothing_half(shelf: Shelf, stop_at: int) -> None:
    await shelf.make("m", gguf(), system="before")
    before = resolve(shelf, "m")
    files = {"a.gguf": f"sha256:{await shelf.put(gguf(steps=3, other=1))}"}
    request = CreateRequest(model="m", files=files, system="after")
    seen: list[str] = []
    async with contextlib.aclosing(shelf.creator.create(request)) as statuses:
        async for line in statuses:
            seen.append(line.status)
            if len(seen) > stop_at:
                break
    model = resolve(shelf, "m")
    model.require_weights()
    assert model.system == ("after" if seen[-1] == "success" else "before")
    assert (model == before) is (seen[-1] != "success")
    assert shelf.staging() == []


async def test_weights_cannot_be_collected_while_they_are_converted(shelf: Shelf) -> None:
    data = gguf(steps=10, seconds=0.03)
    await shelf.put(data)
    name = parse_name("other")
    layer = media.Layer(media_type=media.MODEL, digest=f"sha256:{hex_of(data)}", size=len(data))
    await shelf.store.write_manifest(name, media.Manifest(layers=(layer,)))
    making = asyncio.create_task(shelf.make("m", data))
    await until(shelf.staging)
    await shelf.store.delete(name)
    await making
    assert resolve(shelf, "m").require_weights().path.read_bytes() == data


async def test_overwriting_removes_what_is_no_longer_used(shelf: Shelf) -> None:
    await shelf.make("m", gguf(), system="first")
    await shelf.create(model="M", source="m", system="second")
    assert [name.short for name in shelf.store.names()] == ["m:latest"]
    assert not shelf.store.blobs.has(hex_of(b"first"))
    assert resolve(shelf, "m").system == "second"


async def test_a_foreign_store_is_refused_before_any_work(shelf: Shelf) -> None:
    store = Store(shelf.store.root, None)
    creator = Creator(store, shelf.conversions, lambda _: asyncio.sleep(0, TARGET))
    with pytest.raises(StoreReadOnly):
        _ = [line async for line in creator.create(CreateRequest(model="m", source="x"))]


async def test_fifty_personas_share_their_weights(shelf: Shelf) -> None:
    await shelf.make("base", gguf())
    await asyncio.gather(
        *(shelf.create(model=f"p{n}", source="base", system=f"you are {n}") for n in range(50))
    )
    assert len(shelf.store.names()) == 51
    assert {entry.manifest.layers[0].digest for entry in shelf.store.manifests()} == {
        f"sha256:{hex_of(gguf())}"
    }
    assert len(shelf.runs()) == 1


def test_config_of_others_is_read() -> None:
    assert decode_config(b'{"model_families":["a","b"]}').model_families == ("a", "b")


async def test_without_room_for_the_artifact_the_model_is_kept_and_it_says_so(shelf: Shelf) -> None:
    statuses = await shelf.make("m", gguf(fail="space"))
    reason = "the stand-in says space"
    assert f"the model stays unconverted, as its artifact does not fit: {reason}" in statuses
    assert statuses[-1] == "success"
    assert [name.short for name in shelf.store.names()] == ["m:latest"]
