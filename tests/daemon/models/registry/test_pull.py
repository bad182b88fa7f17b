"""Whole pulls from a registry on loopback, with a converter that obeys the file."""

from __future__ import annotations

import asyncio
import hashlib
import json
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from daemon.errors import DaemonError, Internal, Invalid, NoSpace, NotYet, StoreReadOnly
from daemon.models.create import Creator
from daemon.models.create_request import CreateRequest
from daemon.models.jobs import CONVERTER_COMMAND
from daemon.models.name import parse_name
from daemon.models.registry import pull as pull_module
from daemon.models.registry.space import Disk
from daemon.models.store import Store
from tests.daemon.models.registry.pulling import CONFIG, PullingShelf, texts
from tests.daemon.models.shelf import gguf
from tests.models.random_gguf import SIZES, make_gguf
from tests.registry.server import MANIFEST_TYPE, Registry

MODEL = gguf(note="x" * 400_000)
SYSTEM = b"Be brief."


def short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    async with Registry(needs_token=True) as registry:
        registry.chunk_bytes = 16 << 10
        registry.add_model("library/m", "latest", [("model", MODEL), ("system", SYSTEM)], CONFIG)
        yield registry


@pytest.fixture
async def shelf(tmp_path: pathlib.Path) -> AsyncIterator[PullingShelf]:
    shelf = PullingShelf(tmp_path / "shelf")
    yield shelf
    await shelf.puller.close()
    await shelf.conversions.close()


async def test_every_status_in_order(registry: Registry, shelf: PullingShelf) -> None:
    lines = await shelf.pull(registry)
    config = json.dumps(CONFIG).encode()
    found = texts(lines)
    assert found[0] == "pulling manifest"
    assert found[1:4] == [f"pulling {short(blob)}" for blob in (MODEL, SYSTEM, config)]
    assert found[4:6] == ["verifying sha256 digest", "writing manifest"]
    assert found[-1] == "success"
    assert any(text.startswith("converting to onnx-cpu") for text in found[6:-1])
    assert shelf.puller.access.throttle.spent_bytes == len(MODEL) + len(SYSTEM) + len(config)
    done = {line["digest"]: line for line in lines if "digest" in line}
    assert len(done) == 3
    assert all(line["completed"] == line["total"] for line in done.values())
    assert shelf.leftovers() == []
    name = parse_name(f"{registry.host}/library/m")
    assert shelf.store.resolve(name).system == "Be brief."
    stored = shelf.store.manifest_bytes(name)
    assert stored == registry.manifests["library/m", "latest"]
    agent = registry.user_agents.pop()
    assert agent.startswith("ollama/0.")
    assert agent.endswith(" Hearth/1.2.3")


async def test_what_is_there_is_one_event_and_no_download(
    registry: Registry, shelf: PullingShelf
) -> None:
    await shelf.pull(registry)
    registry.sent_bytes.clear()
    lines = await shelf.pull(registry)
    assert registry.sent_bytes.total() == 0
    shown = [line for line in lines if "digest" in line]
    assert len(shown) == 3
    assert all(line["completed"] == line["total"] for line in shown)
    assert texts(lines)[-1] == "success"


async def test_an_update_removes_what_only_the_old_one_used(
    registry: Registry, shelf: PullingShelf
) -> None:
    await shelf.pull(registry)
    registry.add_model("library/m", "latest", [("model", MODEL), ("system", b"New.")], CONFIG)
    lines = await shelf.pull(registry)
    assert texts(lines)[-2:] == ["removing unused layers", "success"]
    assert not shelf.store.blobs.has(hashlib.sha256(SYSTEM).hexdigest())
    assert shelf.store.blobs.has(hashlib.sha256(MODEL).hexdigest())


async def test_many_callers_cost_one_download(registry: Registry, shelf: PullingShelf) -> None:
    registry.faults.bytes_per_second = 1_000_000
    answers = await asyncio.gather(*(shelf.pull(registry) for _ in range(32)))
    digest = f"sha256:{hashlib.sha256(MODEL).hexdigest()}"
    assert registry.sent_bytes[digest] <= len(MODEL) + 8  # the way to it is asked for one byte
    assert len(shelf.runs()) == 1
    for lines in answers:
        assert texts(lines)[0] == "pulling manifest"
        assert texts(lines)[-1] == "success"
        seen = [line.get("completed", 0) for line in lines if line.get("digest") == digest]
        assert seen == sorted(seen)
        assert len(seen) > 2


async def test_two_names_share_a_blob(registry: Registry, shelf: PullingShelf) -> None:
    registry.faults.bytes_per_second = 1_000_000
    registry.add_model("library/n", "latest", [("system", SYSTEM), ("model", MODEL)], CONFIG)
    one, two = await asyncio.gather(shelf.pull(registry, "m"), shelf.pull(registry, "n"))
    digest = f"sha256:{hashlib.sha256(MODEL).hexdigest()}"
    assert registry.sent_bytes[digest] <= len(MODEL) + 8
    assert texts(one)[-1] == texts(two)[-1] == "success"


async def test_the_last_to_leave_stops_it_and_the_next_goes_on(
    registry: Registry, shelf: PullingShelf
) -> None:
    registry.faults.bytes_per_second = 500_000
    tasks = [asyncio.create_task(shelf.pull(registry)) for _ in range(3)]
    await asyncio.sleep(0.5)
    tasks[0].cancel()
    tasks[1].cancel()
    await asyncio.sleep(0.1)
    before = registry.sent_bytes.total()
    assert not tasks[2].done()
    tasks[2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert any(name.endswith("-partial") for name in shelf.leftovers())
    await asyncio.sleep(0.3)
    stopped_at = registry.sent_bytes.total()
    assert before <= stopped_at < len(MODEL)
    registry.faults.bytes_per_second = 0
    await shelf.pull(registry)
    digest = f"sha256:{hashlib.sha256(MODEL).hexdigest()}"
    # What lay in socket buffers is lost, nothing else.
    assert registry.sent_bytes[digest] <= len(MODEL) + 300_000
    assert shelf.leftovers() == []


async def test_a_closed_stream_that_nobody_read_starts_nothing(
    registry: Registry, shelf: PullingShelf
) -> None:
    stream = shelf.puller.pull(parse_name(f"{registry.host}/library/m"), insecure=True)
    await stream.aclose()
    await asyncio.sleep(0.05)
    assert registry.requests == []


async def test_no_such_model(registry: Registry, shelf: PullingShelf) -> None:
    with pytest.raises(Internal) as caught:
        await shelf.pull(registry, "absent")
    assert caught.value.message == "pull model manifest: file does not exist"


async def test_refused_by_name_before_the_rest(registry: Registry, shelf: PullingShelf) -> None:
    refused = gguf(refused=True, note="y" * 1000)
    other = b"z" * 100_000
    registry.add_model("library/r", "latest", [("license", other), ("model", refused)], CONFIG)
    with pytest.raises(NotYet, match="no recipe"):
        await shelf.pull(registry, "r")
    assert f"sha256:{hashlib.sha256(other).hexdigest()}" not in registry.sent_bytes
    assert shelf.leftovers() == []
    assert shelf.store.names() == []


async def test_a_long_header_is_fetched_piece_by_piece(
    registry: Registry, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real inspector, on a file whose header is longer than the first piece."""
    monkeypatch.setattr(pull_module, "HEAD_BYTES", 4096)
    shelf = PullingShelf(tmp_path / "shelf", command=CONVERTER_COMMAND)
    data = make_gguf(tmp_path / "m.gguf", **SIZES["0.1M"]).read_bytes()
    refused = b"license" * 10_000
    registry.add_model("library/m", "latest", [("license", refused), ("model", data)], CONFIG)
    monkeypatch.setattr(shelf.puller, "target_for", no_target)
    with pytest.raises(NotYet, match="nothing here"):
        await shelf.pull(registry)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    inspection = shelf.puller.looked_at[digest]
    assert inspection.architecture == "llama"
    assert 4096 < inspection.header_bytes < registry.sent_bytes[digest] < len(data)
    assert registry.sent_bytes[f"sha256:{hashlib.sha256(refused).hexdigest()}"] == 0
    assert shelf.leftovers() == []


async def no_target(_: object) -> str:
    raise NotYet("nothing here runs it")


async def test_what_is_no_gguf_is_refused(registry: Registry, shelf: PullingShelf) -> None:
    registry.add_model("library/r", "latest", [("model", b"<html>")], CONFIG)
    with pytest.raises(Invalid, match="not in GGUF format"):
        await shelf.pull(registry, "r")
    assert shelf.leftovers() == []


async def test_a_wrong_digest_installs_nothing(registry: Registry, shelf: PullingShelf) -> None:
    registry.faults.flips_byte_at = 300_000
    with pytest.raises(Internal, match="digest mismatch, file must be downloaded again"):
        await shelf.pull(registry)
    assert shelf.store.names() == []
    assert not any(short(MODEL) in name for name in shelf.leftovers())
    registry.faults.flips_byte_at = -1
    assert texts(await shelf.pull(registry))[-1] == "success"
    assert shelf.leftovers() == []


def disks(blobs_free: int, artifacts_free: int, *, same: bool = False) -> Any:
    def disk_of(path: pathlib.Path) -> Disk:
        if path.name == "blobs" or same:
            return Disk(1, blobs_free)
        return Disk(2, artifacts_free)

    return disk_of


async def test_no_room_for_the_model(
    registry: Registry, shelf: PullingShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull_module, "disk_of", disks(10, 10**12))
    registry.add_model(
        "library/m", "latest", [("license", b"L" * 50_000), ("model", MODEL)], CONFIG
    )
    with pytest.raises(NoSpace, match=r"not enough space: 50.* bytes needed, 10 bytes free"):
        await shelf.pull(registry)
    assert shelf.store.names() == []


async def test_no_room_for_the_artifact_only(
    registry: Registry, shelf: PullingShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull_module, "disk_of", disks(10**12, 999))
    data = gguf(estimate=1000)
    registry.add_model("library/m", "latest", [("model", data)], CONFIG)
    lines = await shelf.pull(registry)
    expected = (
        "the model stays unconverted, as its artifact does not fit: "
        "1000 bytes needed, 999 bytes free"
    )
    assert texts(lines)[-2:] == [expected, "success"]
    assert shelf.runs() == []
    assert len(shelf.store.names()) == 1


async def test_a_converter_without_room_leaves_the_model(
    registry: Registry, shelf: PullingShelf
) -> None:
    registry.add_model("library/m", "latest", [("model", gguf(fail="space"))], CONFIG)
    lines = await shelf.pull(registry)
    assert texts(lines)[-2].startswith("the model stays unconverted")
    assert texts(lines)[-1] == "success"


LAYER = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:" + "a" * 64}


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (b"<html>", "not readable"),
        (b'{"layers":[]}', "no layers"),
        ({"layers": [LAYER | {"size": -1}]}, "absurd size"),
        ({"layers": [LAYER | {"size": 1 << 50}]}, "absurd size"),
        ({"layers": [LAYER | {"digest": "sha256:../../x", "size": 1}]}, "names the digest"),
        ({"layers": [LAYER | {"size": 1}] * 2000}, "2000 layers"),
        ({"layers": [LAYER | {"size": 1}, LAYER | {"size": 2}]}, "two sizes"),
        ({"manifests": []}, "index of several"),
        ({"schemaVersion": 1, "layers": [LAYER]}, "schema version 1"),
        (
            {"layers": [LAYER | {"mediaType": "application/vnd.ollama.image.tensor"}]},
            "safetensors",
        ),
        (
            {
                "layers": [
                    LAYER | {"mediaType": "application/vnd.ollama.image.license", "size": 1 << 30}
                ]
            },
            "absurd size",
        ),
        (b" " * (5 << 20), "over 4194304 bytes"),
    ],
)
async def test_absurd_manifests(
    registry: Registry, shelf: PullingShelf, manifest: Any, message: str
) -> None:
    data = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    registry.manifests["library/m", "latest"] = data
    with pytest.raises(DaemonError, match=message):
        await shelf.pull(registry)
    assert shelf.store.names() == []
    assert shelf.leftovers() == []


async def test_a_store_of_others_is_not_written(registry: Registry, shelf: PullingShelf) -> None:
    shelf.puller.store = Store(shelf.store.root, None)
    with pytest.raises(StoreReadOnly):
        await shelf.pull(registry)
    assert registry.requests == []


async def test_create_pulls_a_missing_source(registry: Registry, shelf: PullingShelf) -> None:
    creator = Creator(
        shelf.store,
        shelf.conversions,
        shelf.creator.target_for,
        shelf.puller.pull,
    )
    source = f"{registry.host}/library/m"
    with pytest.raises(DaemonError):  # the registry speaks http only
        _ = [line async for line in creator.create(CreateRequest(model="p", source=source))]
    request = CreateRequest(model="p", source=source, insecure=True, system="Be kind.")
    found = [line.status async for line in creator.create(request)]
    assert found[0] == "pulling manifest"
    assert found.count("success") == 1
    assert found[-1] == "success"
    assert shelf.store.resolve(parse_name("p")).system == "Be kind."


async def test_a_truncated_blob_on_disk_is_fetched_again(
    registry: Registry, shelf: PullingShelf
) -> None:
    await shelf.pull(registry)
    blob = shelf.store.blobs.path(hashlib.sha256(SYSTEM).hexdigest())
    blob.write_bytes(b"B")
    await shelf.pull(registry)
    assert blob.read_bytes() == SYSTEM


async def test_the_daemon_stops_in_the_middle(registry: Registry, shelf: PullingShelf) -> None:
    registry.faults.bytes_per_second = 200_000
    task = asyncio.create_task(shelf.pull(registry))
    await asyncio.sleep(0.3)
    await shelf.puller.close()
    with pytest.raises(DaemonError, match="stopping"):
        await task


async def test_statuses_of_the_manifest_are_told(registry: Registry, shelf: PullingShelf) -> None:
    registry.faults.manifest_status = (412, '{"errors":["too old"]}')
    with pytest.raises(Internal) as caught:
        await shelf.pull(registry)
    assert caught.value.message == 'pull model manifest: 412: {"errors":["too old"]}'
    assert MANIFEST_TYPE in registry.accepted
