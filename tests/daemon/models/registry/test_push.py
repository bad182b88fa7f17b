"""Whole pushes to a registry on loopback: statuses, what is not sent again, what is survived."""

from __future__ import annotations

import asyncio
import hashlib
import pathlib
from collections.abc import AsyncIterator

import pytest

from daemon.errors import DaemonError, Internal, NotFound
from daemon.models.name import parse_name
from daemon.models.registry import upload as upload_module
from tests.daemon.models.registry.pulling import PullingShelf, texts
from tests.daemon.models.shelf import gguf
from tests.registry.server import Registry

MODEL = gguf(note="x" * 3_000_000)


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    async with Registry(needs_token=True) as registry:
        yield registry


@pytest.fixture
async def shelf(
    tmp_path: pathlib.Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[PullingShelf]:
    """With a model of two layers, whose weights go out in parts of a megabyte."""
    monkeypatch.setattr(upload_module, "MIN_PART_BYTES", 1_000_000)
    shelf = PullingShelf(tmp_path / "shelf")
    await shelf.make(f"{registry.host}/library/m", MODEL, system="Be brief.")
    yield shelf
    await shelf.pusher.close()
    await shelf.conversions.close()


def requests(registry: Registry, method: str) -> int:
    return sum(1 for found, _ in registry.requests if found == method)


async def test_every_status_in_order(registry: Registry, shelf: PullingShelf) -> None:
    lines = await shelf.push(registry.host)
    name = parse_name(f"{registry.host}/library/m")
    data, manifest = shelf.store.manifest_bytes(name), shelf.store.resolve(name).manifest
    digests = [layer.digest for layer in (*manifest.layers, manifest.config)]
    assert texts(lines) == [
        "retrieving manifest",
        *(f"pushing {digest[7:19]}" for digest in digests),
        "pushing manifest",
        "success",
    ]
    assert set(registry.blobs) == set(digests)
    assert registry.manifests["library/m", "latest"] == data
    assert requests(registry, "PATCH") == 3 + 1 + 2
    done = {line["digest"]: line for line in lines if "digest" in line}
    assert all(line["completed"] == line["total"] for line in done.values())


async def test_what_is_there_is_not_sent_again(registry: Registry, shelf: PullingShelf) -> None:
    await shelf.push(registry.host)
    registry.requests.clear()
    lines = await shelf.push(registry.host)
    assert requests(registry, "PATCH") == 0
    assert len([line for line in lines if "digest" in line]) == 3


async def test_there_and_back(
    registry: Registry, shelf: PullingShelf, tmp_path: pathlib.Path
) -> None:
    await shelf.push(registry.host)
    other = PullingShelf(tmp_path / "other")
    try:
        assert texts(await other.pull(registry))[-1] == "success"
        name = parse_name(f"{registry.host}/library/m")
        assert other.store.manifest_bytes(name) == shelf.store.manifest_bytes(name)
    finally:
        await other.conversions.close()


async def test_layers_of_another_model_are_mounted(registry: Registry, shelf: PullingShelf) -> None:
    await shelf.push(registry.host)
    await shelf.create(
        model=f"{registry.host}/library/p", source=f"{registry.host}/library/m", system="Else."
    )
    registry.hides_blobs = True  # as if blobs were kept per model
    before = registry.received_bytes
    await shelf.push(registry.host, "p")
    assert any("mount=sha256" in query and "from=library/m" in query for query in registry.queries)
    assert registry.received_bytes < before + 10_000


async def test_dropped_connections_are_taken_up(registry: Registry, shelf: PullingShelf) -> None:
    registry.faults.drops, registry.faults.drop_after_bytes = 2, 400_000
    lines = await shelf.push(registry.host)
    assert texts(lines)[-1] == "success"
    assert registry.received_bytes < 2 * len(MODEL)


async def test_passing_errors_are_waited_out(registry: Registry, shelf: PullingShelf) -> None:
    registry.faults.upload_statuses = [503, 500, 429]
    assert texts(await shelf.push(registry.host))[-1] == "success"


async def test_errors_that_do_not_pass(registry: Registry, shelf: PullingShelf) -> None:
    registry.faults.upload_statuses = [503] * 1000
    with pytest.raises(Internal, match="max retries exceeded: 503: not now"):
        await shelf.push(registry.host)
    registry.faults.upload_statuses = [418]
    with pytest.raises(DaemonError, match="418: not now"):
        await shelf.push(registry.host)


async def test_a_session_is_taken_up_by_the_next_push(
    registry: Registry, shelf: PullingShelf
) -> None:
    registry.faults.upload_pause_seconds = 0.1
    task = asyncio.create_task(shelf.push(registry.host))
    while registry.received_bytes < 1_200_000:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    registry.faults.upload_pause_seconds = 0
    assert texts(await shelf.push(registry.host))[-1] == "success"
    assert registry.received_bytes < len(MODEL) + 1_000_000
    assert f"sha256:{hashlib.sha256(MODEL).hexdigest()}" in registry.blobs


async def test_a_session_that_is_gone_is_begun_anew(
    registry: Registry, shelf: PullingShelf
) -> None:
    registry.faults.upload_pause_seconds = 0.1
    task = asyncio.create_task(shelf.push(registry.host))
    while registry.received_bytes < 1_200_000:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    registry.faults.upload_pause_seconds = 0
    registry.uploads.clear()
    assert texts(await task)[-1] == "success"


async def test_no_such_model(registry: Registry, shelf: PullingShelf) -> None:
    name = parse_name(f"{registry.host}/library/absent")
    seen: list[str] = []
    with pytest.raises(NotFound):
        async for line in shelf.pusher.push(name, insecure=True):
            seen.append(line.status)
    assert seen == ["retrieving manifest", "couldn't retrieve manifest"]


async def test_no_access(registry: Registry, shelf: PullingShelf) -> None:
    registry.faults.token_cycles = 1000
    with pytest.raises(DaemonError, match="unauthorized: access denied"):
        await shelf.push(registry.host)
