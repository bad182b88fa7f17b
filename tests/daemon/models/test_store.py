"""The store on a real disk: what it writes, what it refuses, and what survives interruptions."""

import asyncio
import os
import pathlib
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from daemon.errors import Internal, Invalid, LoadFailed, NotFound, StoreReadOnly
from daemon.models import manifest as media
from daemon.models.manifest import (
    Manifest,
    encode_manifest,
)
from daemon.models.marker import Marker, read_marker, write_marker
from daemon.models.name import parse_name
from daemon.models.store import Store
from daemon.models.store import open_store as open_and_prune
from tests.daemon.models.stores import (
    CONTENT,
    add,
    blob_names,
    hex_of,
    nothing,
    open_store,
    store,
    stream,
)

__all__ = ["store"]


def make_old(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No call sets a change time, so the clock moves instead."""
    assert path.exists()
    now = time.time()
    monkeypatch.setattr("daemon.models.collection.time.time", lambda: now + 3700)


# ---- blobs ----


async def test_put_blob(store: Store) -> None:
    digest = await store.put_blob(stream(CONTENT), hex_of(CONTENT))
    path = store.blobs.path(digest)
    assert path.name == f"sha256-{hex_of(CONTENT)}"
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o777 == 0o644
    assert await store.put_blob(stream(CONTENT, 7777)) == digest
    assert blob_names(store) == {path.name}


async def test_an_empty_blob_is_a_blob(store: Store) -> None:
    assert await store.put_blob(stream(b"")) == hex_of(b"")


async def test_wrong_content_stays_under_its_true_digest(store: Store) -> None:
    with pytest.raises(Invalid) as caught:
        await store.put_blob(stream(b"abc"), "0" * 64)
    expected, got = f"sha256:{'0' * 64}", f"sha256:{hex_of(b'abc')}"
    assert caught.value.message == f'digest mismatch, expected "{expected}", got "{got}"'
    assert store.blobs.has(hex_of(b"abc"))
    assert not store.blobs.has("0" * 64)


@pytest.mark.parametrize("pieces", [0, 1, 40])
async def test_a_failing_upload_leaves_nothing(store: Store, pieces: int) -> None:
    async def broken() -> AsyncIterator[bytes]:
        for _ in range(pieces):
            yield b"x" * 65536
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.put_blob(broken())
    assert blob_names(store) == set()


@pytest.mark.parametrize("after_seconds", [0.0, 0.001, 0.01, 0.05])
async def test_a_cancelled_upload_leaves_nothing(store: Store, after_seconds: float) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * (1 << 20)
            await asyncio.sleep(0)

    task = asyncio.create_task(store.put_blob(endless()))
    await asyncio.sleep(after_seconds)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert blob_names(store) == set()


async def test_the_loop_stays_free_while_hashing(store: Store) -> None:
    longest, last = 0.0, time.perf_counter()
    task = asyncio.create_task(store.put_blob(stream(b"y" * (64 << 20), 1 << 20)))
    while not task.done():
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    assert longest < 0.5


@pytest.mark.parametrize(
    "digest", ["", "..", "../../x", "A" * 64, "0" * 63, "0" * 65, "/etc/passwd"]
)
def test_no_path_leads_out_of_the_folder(store: Store, digest: str) -> None:
    with pytest.raises(Invalid):
        store.blobs.path(digest)


async def test_the_old_spelling_of_blob_files_is_read(store: Store) -> None:
    digest = hex_of(b"old")
    (store.blobs.folder / f"sha256:{digest}").write_bytes(b"old")
    assert store.blobs.path(digest).read_bytes() == b"old"


# ---- taking files in ----


async def test_link_blob_shares_the_file(store: Store, tmp_path: pathlib.Path) -> None:
    source = tmp_path / "a.gguf"
    source.write_bytes(CONTENT)
    seen: list[tuple[int, int]] = []
    digest = await store.link_blob(source, lambda done, total: seen.append((done, total)))
    blob = store.blobs.path(digest)
    assert (digest, blob.read_bytes()) == (hex_of(CONTENT), CONTENT)
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    is_linked = blob.stat().st_ino == source.stat().st_ino
    assert is_linked or blob.stat().st_nlink == 1
    assert await store.link_blob(source, nothing) == digest
    assert blob_names(store) == {blob.name}
    source.unlink()
    assert blob.read_bytes() == CONTENT


@pytest.fixture
def file_elsewhere(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """On another filesystem than the store, where nothing can be linked."""
    shared = pathlib.Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second filesystem here")
    source = shared / f"hearth-test-{os.getpid()}.gguf"
    source.write_bytes(CONTENT)
    yield source
    source.unlink()


async def test_link_blob_copies_where_it_must(store: Store, file_elsewhere: pathlib.Path) -> None:
    digest = await store.link_blob(file_elsewhere, nothing)
    assert store.blobs.path(digest).stat().st_nlink == 1
    assert store.blobs.path(digest).read_bytes() == CONTENT
    assert blob_names(store) == {f"sha256-{hex_of(CONTENT)}"}


async def test_link_blob_follows_links_and_refuses_what_is_no_file(
    store: Store, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "real").write_bytes(b"real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    digest = await store.link_blob(tmp_path / "link", nothing)
    assert not store.blobs.path(digest).is_symlink()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Invalid, match="not a plain file"):
        await store.link_blob(tmp_path / "pipe", nothing)
    with pytest.raises(OSError, match="directory"):
        await store.link_blob(tmp_path, nothing)
    assert blob_names(store) == {f"sha256-{hex_of(b'real')}"}


async def test_a_file_that_changes_meanwhile_is_refused(
    store: Store, tmp_path: pathlib.Path
) -> None:
    source = tmp_path / "growing"
    source.write_bytes(CONTENT)

    def grow(_done: int, _total: int) -> None:
        with source.open("ab") as file:
            file.write(b"more")

    with pytest.raises(Invalid, match="changed while"):
        await store.link_blob(source, grow)
    assert blob_names(store) == set()


# ---- manifests ----


async def test_write_list_resolve(store: Store) -> None:
    manifest = await add(store, "me/m:t", SYSTEM="be kind", LICENSE="MIT", TEMPLATE="{{ .Prompt }}",
                         PARAMETERS='{"stop":["x"],"temperature":0.5}\n',
                         MESSAGES='[{"role":"user","content":"hi","extra":1}]\n')  # fmt: skip
    model = store.resolve(parse_name("ME/M:T"))
    file = store.root / "manifests/registry.ollama.ai/me/m/t"
    assert file.read_bytes() == encode_manifest(manifest)
    assert model.digest == hex_of(file.read_bytes())
    assert model.name.short == "me/m:t"
    assert (model.system, model.licenses, model.template) == ("be kind", ("MIT",), "{{ .Prompt }}")
    assert model.parameters == {"stop": ["x"], "temperature": 0.5}
    assert [(m.role, m.content) for m in model.messages] == [("user", "hi")]
    assert model.config.model_family == "llama"
    assert model.require_weights().path.read_bytes() == CONTENT
    assert [entry.name.short for entry in store.manifests()] == ["me/m:t"]
    assert not list((store.root / "manifests").glob(".tmp-*"))


async def test_not_found(store: Store) -> None:
    with pytest.raises(NotFound, match="model 'x:latest' not found"):
        store.resolve(parse_name("x"))
    with pytest.raises(NotFound):
        await store.delete(parse_name("x"))
    with pytest.raises(NotFound, match='model "x:latest" not found'):
        await store.copy(parse_name("x"), parse_name("y"))
    assert (store.names(), store.is_empty()) == ([], True)


async def test_case_rule(store: Store) -> None:
    await add(store, "foo:Latest")
    await add(store, "Foo:latest", SYSTEM="new")
    assert [name.short for name in store.names()] == ["foo:Latest"]
    assert store.resolve(parse_name("FOO")).system == "new"
    await add(store, "MyModel:latest")
    assert {name.short for name in store.names()} == {"foo:Latest", "MyModel:Latest"}
    assert store.find(parse_name("mymodel:LATEST")) == parse_name("MyModel:Latest")
    assert store.find(parse_name("other")) is None


async def test_no_manifest_without_its_blobs(store: Store) -> None:
    manifest = await add(store, "a")
    store.blobs.remove(hex_of(CONTENT))
    with pytest.raises(Internal, match="not in the store"):
        await store.write_manifest(parse_name("b"), manifest)
    assert [name.short for name in store.names()] == ["a:latest"]
    with pytest.raises(LoadFailed, match="missing"):
        store.resolve(parse_name("a")).require_weights()


async def test_damage_is_named(store: Store) -> None:
    manifest = await add(store, "a", SYSTEM="text")
    store.blobs.path(hex_of(CONTENT)).write_bytes(b"short")
    with pytest.raises(LoadFailed, match="has 5 bytes and not"):
        store.resolve(parse_name("a")).require_weights()
    store.blobs.remove(media.parse_digest(manifest.layers[1].digest))
    with pytest.raises(Internal, match=r"'a:latest' is damaged: blob sha256:\w+ is missing"):
        store.resolve(parse_name("a"))
    (store.root / "manifests/registry.ollama.ai/library/a/latest").write_bytes(b"{broken")
    assert store.manifests() == []
    with pytest.raises(Internal, match="unreadable manifest"):
        store.resolve(parse_name("a"))


async def test_copy_is_byte_for_byte(store: Store) -> None:
    await add(store, "a")
    file = store.root / "manifests/registry.ollama.ai/library/a/latest"
    odd = file.read_bytes().replace(b'"schemaVersion":2,', b'"schemaVersion": 2, "x": 1, ')
    file.write_bytes(odd)
    await store.copy(parse_name("A"), parse_name("host:5000/b/c:d"))
    assert (store.root / "manifests/host:5000/b/c/d").read_bytes() == odd
    await store.copy(parse_name("a"), parse_name("A"))
    assert len(store.names()) == 2


# ---- deletion and collection ----


async def test_delete_keeps_what_others_mention(store: Store) -> None:
    await add(store, "a", SYSTEM="only a")
    await add(store, "b", LICENSE="only b")
    broken = store.root / "manifests/registry.ollama.ai/library/zzz"
    broken.mkdir()
    (broken / "latest").write_text(f"not json sha256:{hex_of(b'only a')}")
    await store.delete(parse_name("A"))
    assert store.blobs.has(hex_of(CONTENT))
    assert store.blobs.has(hex_of(b"only a"))
    await store.delete(parse_name("b"))
    assert not store.blobs.has(hex_of(CONTENT))
    assert not store.blobs.has(hex_of(b"only b"))
    assert not (store.root / "manifests/registry.ollama.ai/library/b").exists()
    assert (broken / "latest").exists()


async def test_pinned_blobs_stay(store: Store) -> None:
    await add(store, "a")
    with store.pinned([hex_of(CONTENT)]):
        await store.delete(parse_name("a"))
        assert store.blobs.has(hex_of(CONTENT))
    await add(store, "a")
    await store.delete(parse_name("a"))
    assert not store.blobs.has(hex_of(CONTENT))


async def test_overwriting_collects_in_stores_made_here_only(store: Store) -> None:
    await add(store, "a", SYSTEM="first")
    await add(store, "a", SYSTEM="second")
    assert not store.blobs.has(hex_of(b"first"))
    write_marker(store.root, Marker.ADOPTED)
    adopted = open_store(store.root, is_foreign=True)
    await add(adopted, "a", SYSTEM="third")
    assert adopted.blobs.has(hex_of(b"second"))
    await adopted.delete(parse_name("a"))
    assert not adopted.blobs.has(hex_of(b"third"))


async def test_prune(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await add(store, "a", SYSTEM="kept")
    loose = await store.put_blob(stream(b"loose"))
    (store.blobs.folder / "sha256-123456").write_bytes(b"half")
    (store.root / "manifests/empty/folder").mkdir(parents=True)
    assert await store.prune() == 0
    before = blob_names(store)
    make_old(store.blobs.path(loose), monkeypatch)
    await open_and_prune(store.root, is_foreign=False)
    assert blob_names(store) == before - {f"sha256-{loose}", "sha256-123456"}
    assert not (store.root / "manifests/empty").exists()
    assert store.resolve(parse_name("a")).system == "kept"


async def test_prune_stops_at_a_damaged_manifest(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(store, "a")
    loose = await store.put_blob(stream(b"loose"))
    make_old(store.blobs.path(loose), monkeypatch)
    (store.root / "manifests/registry.ollama.ai/library/a/bad").write_bytes(b"{")
    assert await store.prune() == 0
    assert store.blobs.has(loose)


async def test_prune_leaves_other_peoples_stores(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose = await store.put_blob(stream(b"loose"))
    make_old(store.blobs.path(loose), monkeypatch)
    write_marker(store.root, Marker.ADOPTED)
    assert await open_store(store.root, is_foreign=False).prune() == 0
    assert await open_store(store.root, is_foreign=False, no_prune=True).prune() == 0
    assert store.blobs.has(loose)


# ---- whose store ----


@pytest.mark.parametrize(("is_foreign", "expected"), [(False, Marker.MADE), (True, None)])
def test_only_an_unused_path_of_ours_becomes_a_store(
    tmp_path: pathlib.Path, is_foreign: bool, expected: Marker | None
) -> None:
    for root in (tmp_path / "absent", tmp_path / "empty"):
        if root.name == "empty":
            root.mkdir()
        store = open_store(root, is_foreign=is_foreign)
        assert (read_marker(root), store.is_writable) == (expected, expected is not None)
        assert open_store(root, is_foreign=True).is_writable is (expected is not None)


async def test_a_store_without_the_marker_is_read_only(store: Store) -> None:
    await add(store, "a")
    (store.root / ".hearth-store").unlink()
    before = sorted(store.root.rglob("*"))
    other = open_store(store.root, is_foreign=False)
    assert other.resolve(parse_name("a")).require_weights().path.is_file()
    for attempt in (
        other.put_blob(stream(b"x")),
        other.put_bytes(b"x"),
        other.link_blob(store.root / ".hearth-lock", nothing),
        other.write_manifest(parse_name("b"), Manifest()),
        other.copy(parse_name("a"), parse_name("b")),
        other.delete(parse_name("a")),
    ):
        with pytest.raises(StoreReadOnly, match="hearth adopt"):
            await attempt
    assert await other.prune() == 0
    assert sorted(store.root.rglob("*")) == before
