"""What `hearth du` adds up: shared, twice, unmentioned, unreachable."""

from __future__ import annotations

import os
import pathlib
from collections.abc import AsyncIterator

import pytest

from daemon.models.artifact_collection import UNREACHABLE_FILE
from daemon.models.disk_use import DiskUse, measure
from daemon.models.foreign.shelf import ForeignShelf
from daemon.models.name import parse_name
from tests.daemon.models.shelf import Shelf, gguf, hex_of


@pytest.fixture
async def shelf(tmp_path: pathlib.Path) -> AsyncIterator[Shelf]:
    shelf = Shelf(tmp_path / "own")
    yield shelf
    await shelf.conversions.close()


async def measured(shelf: Shelf, foreign: ForeignShelf) -> DiskUse:
    await foreign.refresh(0)
    models = foreign.models()
    return measure(shelf.store, foreign.catalogue, foreign.ledger, models, shelf.artifacts)


async def test_everything_at_once(shelf: Shelf, tmp_path: pathlib.Path) -> None:
    data = gguf(size="x" * 1000)
    await shelf.make("base", data)
    await shelf.create(model="persona", source="base", system="s")
    await shelf.put(b"GGUF nobody's")
    (shelf.store.blobs.folder / "sha256-000000000000000001").write_bytes(b"half")
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / "copy.gguf").write_bytes(data)
    os.link(shelf.store.blobs.path(hex_of(data)), disk / "link.gguf")
    (disk / "else.gguf").write_bytes(gguf(n=2))
    foreign = ForeignShelf(shelf.store, shelf.home, (disk,))
    use = await measured(shelf, foreign)
    own, folder = use.places
    assert (own.kind, own.models, own.unread) == ("own", 2, 0)
    assert (folder.kind, folder.models, folder.files, folder.unread) == ("folder", 3, 3, 3)
    assert folder.size == 2 * len(data) + len(gguf(n=2))
    assert use.duplicates == ()
    assert (use.unmentioned, use.partial) == (len(b"GGUF nobody's"), 4)
    shared = {model.name: model.shared for model in use.models}
    assert len(data) <= shared["persona:latest"] < len(data) + 1000
    assert next(m for m in use.models if m.name == "persona:latest").size > shared["persona:latest"]

    for name in ("copy", "link"):
        await foreign.identified(foreign.resolve(parse_name(name)))
    use = await measured(shelf, foreign)
    (twice,) = use.duplicates
    assert (twice.digest, twice.size, twice.wasted) == (hex_of(data), len(data), len(data))
    assert len(twice.paths) == 3
    (artifact,) = use.artifacts
    names = {"base:latest", "persona:latest", "copy:latest", "link:latest"}
    assert (artifact.source, set(artifact.models)) == (hex_of(data), names)
    assert (artifact.unreachable_since, artifact.size > 0) == (None, True)


async def test_an_artifact_without_a_source(shelf: Shelf) -> None:
    await shelf.make("m", gguf())
    await shelf.store.delete(parse_name("m"))
    (shelf.artifacts / hex_of(gguf()) / UNREACHABLE_FILE).touch()
    (artifact,) = (await measured(shelf, ForeignShelf(shelf.store, shelf.home))).artifacts
    assert artifact.models == ()
    assert artifact.unreachable_since is not None
