"""A store that two daemons write to, that loses its daemon half-way, or that was another program's."""

from __future__ import annotations

import asyncio
import pathlib
import subprocess
import sys
import time

import pytest

from daemon.errors import StoreReadOnly
from daemon.models.durable import locked
from daemon.models.marker import claim
from daemon.models.name import parse_name
from daemon.models.store import LOCK_FILE, Store
from tests.daemon.models.stores import add, blob_names, hex_of, nothing, open_store, store, stream

__all__ = ["store"]

_CHURN = """
import asyncio, pathlib, sys
from daemon.models.manifest import Manifest, layer_of
from daemon.models.name import parse_name
from daemon.models.store import open_store
async def main(root, name, rounds):
    store = await open_store(pathlib.Path(root), is_foreign=False)
    for number in range(rounds):
        blobs = [b"shared", f"{name} {number}".encode()]
        layers = tuple(layer_of(blob, "text") for blob in blobs)
        for blob in blobs:
            await store.put_bytes(blob)
        manifest = Manifest(config=layers[1], layers=layers[:1])
        await store.write_manifest(parse_name(name), manifest, blobs)
        store.resolve(parse_name(name))
        if number + 1 < rounds and number % 3 == 0:
            await store.delete(parse_name(name))
asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def churn(root: pathlib.Path, name: str, rounds: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _CHURN, str(root), name, str(rounds)], stderr=subprocess.PIPE
    )


def assert_whole(store: Store) -> None:
    for entry in store.manifests():
        for digest in entry.manifest.digests:
            content = store.blobs.path(digest).read_bytes()
            assert hex_of(content) == digest


def test_two_daemons_on_one_store(store: Store) -> None:
    children = [churn(store.root, name, 40) for name in ("a", "b")]
    for child in children:
        _, errors = child.communicate(timeout=60)
        assert (child.returncode, errors) == (0, b"")
    assert_whole(store)
    assert len(store.manifests()) == 2


def test_kill_in_the_middle_leaves_a_whole_store(store: Store) -> None:
    for attempt in range(5):
        child = churn(store.root, "a", 100_000)
        time.sleep(0.5 + 0.07 * attempt)
        child.kill()
        child.communicate(timeout=10)
        assert_whole(open_store(store.root, is_foreign=False))


async def test_every_change_waits_for_the_other_daemon(store: Store) -> None:
    manifest = await add(store, "a")
    for change in (
        lambda: store.put_blob(stream(b"x")),
        lambda: store.put_bytes(b"y"),
        lambda: store.link_blob(store.root / ".hearth-store", nothing),
        lambda: store.write_manifest(parse_name("b"), manifest),
        lambda: store.copy(parse_name("a"), parse_name("c")),
        lambda: store.prune(),
        lambda: store.delete(parse_name("a")),
    ):
        with locked(store.root / LOCK_FILE):
            before = (blob_names(store), store.names())
            task = asyncio.create_task(change())
            await asyncio.wait({task}, timeout=0.1)
            assert not task.done()
            stored = {name for name in blob_names(store) if len(name) == len("sha256-") + 64}
            assert (stored, store.names()) == before
        await task
    assert {name.short for name in store.names()} == {"b:latest", "c:latest"}


async def test_an_adopted_store_is_written_and_keeps_what_nobody_deletes(
    tmp_path: pathlib.Path,
) -> None:
    root = tmp_path / "theirs"
    (root / "blobs").mkdir(parents=True)
    store = Store(root, claim(root, is_foreign=True))
    with pytest.raises(StoreReadOnly):
        await store.put_bytes(b"x")
    await store.adopt()
    assert await store.put_bytes(b"x")
    assert Store(root, claim(root, is_foreign=True)).is_writable
    assert await store.prune() == 0
