"""Other programs' folders with real files: found, named, hashed once, unplugged, adopted."""

from __future__ import annotations

import asyncio
import os
import pathlib
from collections.abc import AsyncIterator

import pytest

from daemon.errors import Invalid, NotFound, NotYet, StoreReadOnly
from daemon.models.describe import list_models, show
from daemon.models.foreign import shelf as shelf_module
from daemon.models.foreign.places import Kind, plan_places
from daemon.models.foreign.shelf import ForeignShelf
from daemon.models.jobs import Conversions
from daemon.models.marker import MARKER_FILE, Marker, claim
from daemon.models.name import parse_name
from daemon.models.store import Store
from tests.daemon.models.shelf import STANDIN, Shelf, gguf, hex_of


@pytest.fixture(autouse=True)
def look_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf_module, "FRESH_SECONDS", 0.0)


@pytest.fixture
async def own(tmp_path: pathlib.Path) -> AsyncIterator[Shelf]:
    shelf = Shelf(tmp_path / "own")
    yield shelf
    await shelf.conversions.close()


def put(path: pathlib.Path, data: bytes) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


async def looked(own: Shelf, *folders: pathlib.Path) -> ForeignShelf:
    foreign = ForeignShelf(own.store, own.home, folders)
    assert await foreign.refresh()
    return foreign


def names(foreign: ForeignShelf) -> list[str]:
    return sorted(model.name.short for model in foreign.models())


async def test_a_folder_of_files(own: Shelf, tmp_path: pathlib.Path) -> None:
    root = tmp_path / "files"
    put(root / "pub/repo/a-Q4_0.gguf", gguf(n=1))
    put(root / "pub/repo/mmproj-a-f16.gguf", gguf(n=2, kind="projector"))
    put(root / "big-Q8_0-00001-of-00002.gguf", gguf(n=3))
    put(root / "big-Q8_0-00002-of-00002.gguf", gguf(n=4))
    put(root / "half.gguf", b"GG")
    put(root / "other.gguf", b"ZIP!")
    put(root / ".hidden/x.gguf", gguf(n=5))
    put(root / "readme.md", b"GGUF")
    os.mkfifo(root / "pipe.gguf")
    (root / "circle").symlink_to(root)
    (root / "again.gguf").symlink_to(root / "pub/repo/a-Q4_0.gguf")
    foreign = await looked(own, root)
    assert names(foreign) == ["again:latest", "big:Q8_0"]
    (root / "again.gguf").unlink()
    await foreign.refresh()
    assert names(foreign) == ["big:Q8_0", "pub/repo:Q4_0"]
    model = foreign.resolve(parse_name("PUB/repo:q4_0"))
    assert [p.path.name for p in model.projectors] == ["mmproj-a-f16.gguf"]
    assert model.manifest.total_bytes == len(gguf(n=1)) + len(gguf(n=2, kind="projector"))
    big = foreign.resolve(parse_name("big:q8_0"))
    assert big.manifest.total_bytes == 2 * len(gguf(n=3))
    with pytest.raises(NotYet, match=r"big-Q8_0-00001-of-00002\.gguf is one part of a split GGUF"):
        await foreign.identified(big)
    projector = parse_name("pub/repo:mmproj-a")
    assert foreign.find(projector) is None
    loose = list(foreign.catalogue.loose_projectors)
    with pytest.raises(NotYet, match=r"mmproj-a-f16\.gguf is a projector"):
        foreign.resolve(parse_name(loose[0]))


async def test_a_file_is_read_through_once(
    own: Shelf, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "files/a.gguf", gguf(n=1))
    hashed: list[str] = []
    original = ForeignShelf._hash  # pyright: ignore[reportPrivateUsage]

    def counted(self: ForeignShelf, file: shelf_module.FoundFile) -> str:
        hashed.append(file.path.name)
        return original(self, file)

    monkeypatch.setattr(ForeignShelf, "_hash", counted)
    foreign = await looked(own, tmp_path / "files")
    model = foreign.resolve(parse_name("a"))
    assert model.model_digest != hex_of(gguf(n=1))
    assert foreign.blob_path(model.model_digest) == path
    found = await asyncio.gather(*(foreign.identified(model) for _ in range(5)))
    assert {one.model_digest for one in found} == {hex_of(gguf(n=1))}
    assert found[0].manifest.layers[0].digest == f"sha256:{hex_of(gguf(n=1))}"
    assert found[0].digest == model.digest == foreign.resolve(parse_name("a")).digest
    assert foreign.blob_path(hex_of(gguf(n=1))) == path
    later = await looked(own, tmp_path / "files")
    known = later.resolve(parse_name("a"))
    assert known.model_digest == hex_of(gguf(n=1))
    assert (await later.identified(known)).model_digest == hex_of(gguf(n=1))
    assert hashed == ["a.gguf"]
    path.write_bytes(gguf(n=7))
    await later.refresh()
    changed = await later.identified(later.resolve(parse_name("a")))
    assert changed.model_digest == hex_of(gguf(n=7))
    assert hashed == ["a.gguf"] * 2


async def test_a_file_that_changed_since_the_look(own: Shelf, tmp_path: pathlib.Path) -> None:
    path = put(tmp_path / "files/a.gguf", gguf(n=1))
    foreign = await looked(own, tmp_path / "files")
    model = foreign.resolve(parse_name("a"))
    path.write_bytes(gguf(n="more"))
    with pytest.raises(Invalid, match="changed since"):
        await foreign.identified(model)
    assert not (own.home / "foreign.json").exists()


async def test_an_unplugged_disk_loses_nothing(own: Shelf, tmp_path: pathlib.Path) -> None:
    disk, away = tmp_path / "disk", tmp_path / "away"
    put(disk / "a.gguf", gguf(n=1))
    foreign = await looked(own, disk)
    before = await foreign.identified(foreign.resolve(parse_name("a")))
    disk.rename(away)
    with pytest.raises(NotFound, match="not there now"):
        foreign.resolve(parse_name("a"))
    await foreign.refresh()
    assert names(foreign) == []
    away.rename(disk)
    await foreign.refresh()
    assert foreign.resolve(parse_name("a")) == before


def hugging_face(root: pathlib.Path) -> pathlib.Path:
    """A cache as its own program lays it out: content by digest, snapshots of links."""
    repository = root / "models--org--Model-GGUF"
    blob = put(repository / "blobs" / hex_of(gguf(n=1)), gguf(n=1))
    link = repository / "snapshots/0a1b/Model-Q4_K_M.gguf"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    return link


async def test_a_hugging_face_cache(own: Shelf, tmp_path: pathlib.Path) -> None:
    link = hugging_face(tmp_path / "hub")
    foreign = await looked(own, tmp_path / "hub")
    assert foreign.catalogue.places[0].kind is Kind.CACHE
    assert names(foreign) == ["hf.co/org/Model-GGUF:Q4_K_M"]
    with pytest.raises(NotYet, match="cache of another program"):
        await foreign.adopt(tmp_path / "hub")
    with pytest.raises(StoreReadOnly, match="belongs to another program"):
        await foreign.delete(parse_name("hf.co/org/Model-GGUF:Q4_K_M"))
    assert link.exists()


async def test_a_store_of_another_server(own: Shelf, tmp_path: pathlib.Path) -> None:
    other = Shelf(tmp_path / "other")
    await other.make("same", gguf(n=1), system="one")
    await other.make("their/own:t", gguf(n=2), template="{{ .Prompt }}!")
    (other.store.root / MARKER_FILE).unlink()
    await own.make("same", gguf(n=3))
    foreign = await looked(own, other.store.root)
    assert names(foreign) == ["same:latest-2", "their/own:t"]
    model = foreign.resolve(parse_name("same:latest-2"))
    assert (model.name.short, model.system) == ("same:latest-2", "one")
    assert (await foreign.identified(model)) == model
    assert foreign.blob_path(model.model_digest).read_bytes() == gguf(n=1)
    name = parse_name("their/own:t")
    with pytest.raises(StoreReadOnly, match="hearth adopt"):
        await foreign.delete(name)
    await foreign.adopt(other.store.root)
    await foreign.delete(name)
    assert names(foreign) == ["same:latest-2"]
    assert not other.store.blobs.has(hex_of(gguf(n=2)))
    assert other.store.blobs.has(hex_of(gguf(n=1)))
    await other.conversions.close()


async def test_what_our_own_shelf_has_too_is_shown_once(own: Shelf, tmp_path: pathlib.Path) -> None:
    await own.make("m", gguf())
    copy = tmp_path / "copy"
    Store(copy, claim(copy, is_foreign=False))
    for path in own.store.root.rglob("*"):
        if path.is_file():
            put(copy / path.relative_to(own.store.root), path.read_bytes())
    assert names(await looked(own, copy)) == []


async def test_an_adopted_folder_deletes_its_files(own: Shelf, tmp_path: pathlib.Path) -> None:
    root = tmp_path / "files"
    path = put(root / "p/r/a-Q4_0.gguf", gguf(n=1))
    projector = put(root / "p/r/mmproj.gguf", gguf(n=2))
    foreign = await looked(own, root)
    with pytest.raises(NotFound, match="none of the folders"):
        await foreign.adopt(tmp_path)
    with pytest.raises(StoreReadOnly):
        await foreign.delete(parse_name("p/r:Q4_0"))
    await foreign.adopt(root)
    assert (root / MARKER_FILE).read_text() == Marker.ADOPTED.value
    assert not (root / "blobs").exists()
    await foreign.delete(parse_name("p/r:Q4_0"))
    assert (path.exists(), projector.exists(), names(foreign)) == (False, True, [])


async def test_lists_and_show_describe_them(own: Shelf, tmp_path: pathlib.Path) -> None:
    path = put(tmp_path / "files/a.gguf", gguf(n=1, template="{{ messages }}"))
    foreign = await looked(own, tmp_path / "files")
    conversions = Conversions(
        home=own.home,
        artifacts=own.artifacts,
        blob_path=foreign.blob_path,
        converter_command=STANDIN,
    )
    (entry,) = await list_models(own.store, conversions, own.creator.target_for, foreign.models())
    assert (entry.name, entry.size, entry.details.family) == (
        "a:latest",
        path.stat().st_size,
        "llama",
    )
    assert entry.capabilities == ("completion",)
    model = await foreign.identified(foreign.resolve(parse_name("a")))
    answer = await show(model, conversions, own.creator.target_for)
    assert f"FROM {path}\n" in answer.modelfile
    await conversions.close()


async def test_our_own_store_and_missing_folders_are_no_places(
    own: Shelf, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "files").mkdir()
    folders = (own.store.root, tmp_path / "none", tmp_path / "files", tmp_path / "files")
    places = plan_places(folders, is_auto=False, own=own.store.root)
    assert [place.root for place in places] == [tmp_path / "files"]
    other = Shelf(tmp_path / ".other")
    await other.conversions.close()
    (place,) = plan_places((tmp_path / ".other",), is_auto=False, own=own.store.root)
    assert (place.root, place.kind) == (other.store.root, Kind.STORE)


async def test_unused_it_costs_nothing(own: Shelf) -> None:
    foreign = ForeignShelf(own.store, own.home)
    await foreign.start()
    assert await foreign.refresh()
    assert (foreign.models(), foreign.sources()) == ([], set())
    assert not (own.home / "foreign.json").exists()
