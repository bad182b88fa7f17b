"""Artifacts whose source is gone: kept 30 days, gone at once after rm, never under a worker."""

from __future__ import annotations

import asyncio
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import pytest

from daemon.models import artifact_collection
from daemon.models.artifact_collection import (
    KEPT_SECONDS,
    UNREACHABLE_FILE,
    ArtifactCollector,
)
from daemon.models.foreign import shelf as foreign_module
from daemon.models.foreign.shelf import ForeignShelf
from daemon.models.name import parse_name
from daemon.models.store import Store
from tests.daemon.models.shelf import TARGET, Shelf, gguf, hex_of

SOURCE = hex_of(gguf())


class Rig(Shelf):
    def __init__(self, folder: pathlib.Path, *foreign: pathlib.Path) -> None:
        super().__init__(folder)
        self.foreign = ForeignShelf(self.store, self.home, foreign)
        self.collector = ArtifactCollector(
            self.store, self.foreign, self.conversions, home=self.home, artifacts=self.artifacts
        )

    @property
    def folder(self) -> pathlib.Path:
        return self.artifacts / SOURCE

    @property
    def inspection(self) -> pathlib.Path:
        return self.home / "inspections" / f"{SOURCE}.json"

    def age(self, path: pathlib.Path, seconds: float = KEPT_SECONDS + 60) -> None:
        then = time.time() - seconds
        os.utime(path, (then, then))


@pytest.fixture
async def rig(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(foreign_module, "FRESH_SECONDS", 0.0)
    rig = Rig(tmp_path / "own", tmp_path / "disk")
    await rig.make("m", gguf())
    yield rig
    await rig.conversions.close()


async def test_what_a_model_uses_is_never_touched(rig: Rig) -> None:
    rig.age(rig.inspection)
    assert await rig.collector.collect([SOURCE]) == 0
    assert rig.conversions.artifact(SOURCE, TARGET) is not None
    assert not (rig.folder / UNREACHABLE_FILE).exists()
    assert time.time() - rig.inspection.stat().st_mtime < 60


async def test_thirty_days(rig: Rig) -> None:
    await rig.store.delete(parse_name("m"))
    rig.age(rig.inspection, KEPT_SECONDS - 60)
    assert await rig.collector.collect() == 0
    note = rig.folder / UNREACHABLE_FILE
    rig.age(note, KEPT_SECONDS - 60)
    assert await rig.collector.collect() == 0
    assert rig.conversions.artifact(SOURCE, TARGET) is not None
    assert rig.inspection.exists()
    rig.age(note)
    rig.age(rig.inspection)
    assert await rig.collector.collect() > 0
    assert [path.name for path in rig.artifacts.iterdir() if path.is_dir()] == []
    assert not rig.inspection.exists()


async def test_a_source_that_comes_back_starts_anew(rig: Rig) -> None:
    await rig.store.delete(parse_name("m"))
    await rig.collector.collect()
    note = rig.folder / UNREACHABLE_FILE
    rig.age(note)
    disk = rig.store.root.parent.parent / "disk"
    disk.mkdir()
    (disk / "there.gguf").write_bytes(gguf())
    await rig.foreign.refresh()
    await rig.foreign.identified(rig.foreign.resolve(parse_name("there")))
    assert await rig.collector.collect() == 0
    assert not note.exists()
    (disk / "there.gguf").unlink()
    assert await rig.collector.collect() == 0
    assert note.exists()


async def test_after_rm_at_once(rig: Rig) -> None:
    await rig.store.delete(parse_name("m"))
    assert await rig.collector.collect([SOURCE]) > 0
    assert not rig.folder.exists()
    assert not rig.inspection.exists()


async def test_never_under_a_worker_of_any_daemon(rig: Rig) -> None:
    await rig.store.delete(parse_name("m"))
    (variant,) = (path for path in rig.folder.iterdir() if path.is_dir())
    code = (
        "import pathlib, sys\nfrom backends.worker.hold import hold_artifact\n"
        "assert hold_artifact(pathlib.Path(sys.argv[1])) is not None\n"
        "print('held', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(variant)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdout is not None and worker.stdout.readline() == b"held\n"
        assert await rig.collector.collect([SOURCE]) == 0
        assert (variant / "artifact.json").exists()
        worker.communicate()
    assert await rig.collector.collect() > 0


async def test_never_beside_a_converter(rig: Rig) -> None:
    await rig.store.delete(parse_name("m"))
    (rig.folder / "onnx-cuda-f1.staging-1").mkdir()
    assert await rig.collector.collect([SOURCE]) == 0
    assert rig.conversions.artifact(SOURCE, TARGET) is not None


async def test_a_collection_that_was_cut_short_is_finished(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(folder: pathlib.Path, **_: object) -> int:
        raise KeyboardInterrupt(str(folder))

    await rig.store.delete(parse_name("m"))
    with monkeypatch.context() as cut:
        cut.setattr(artifact_collection.shutil, "rmtree", interrupted)
        collector = rig.collector
        with pytest.raises(KeyboardInterrupt):
            collector._collect(set(), frozenset([SOURCE]))  # pyright: ignore[reportPrivateUsage]
    assert not rig.folder.exists()
    assert len(list(rig.artifacts.glob(".removed-*"))) == 1
    assert await rig.collector.collect() > 0
    assert list(rig.artifacts.glob(".removed-*")) == []


async def test_nothing_is_judged_while_a_disk_does_not_answer(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign_module, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(foreign_module, "plan_places", lambda *_, **__: time.sleep(0.5) or [])
    await rig.store.delete(parse_name("m"))
    assert await rig.collector.collect([SOURCE]) == 0
    assert rig.folder.exists()
    await rig.foreign.close()


async def test_a_store_that_is_only_read(rig: Rig, tmp_path: pathlib.Path) -> None:
    store = Store(rig.store.root, None)
    foreign = ForeignShelf(store, rig.home)
    collector = ArtifactCollector(
        store, foreign, rig.conversions, home=rig.home, artifacts=rig.artifacts
    )
    assert await collector.collect() == 0
    assert rig.conversions.artifact(SOURCE, TARGET) is not None
    assert not (rig.folder / UNREACHABLE_FILE).exists()
    assert list(tmp_path.rglob("*.tmp")) == []


async def test_two_daemons_collect_at_once(rig: Rig, tmp_path: pathlib.Path) -> None:
    await rig.store.delete(parse_name("m"))
    other = Rig(tmp_path / "own")
    freed = await asyncio.gather(rig.collector.collect([SOURCE]), other.collector.collect([SOURCE]))
    assert sorted(freed)[0] == 0 < sorted(freed)[1]
    await other.conversions.close()


async def test_what_was_kept_of_chats_goes_with_the_model(rig: Rig) -> None:
    cache, others = rig.home / "cache" / SOURCE, rig.home / "cache" / ("ab" * 32)
    for folder in (cache, others):
        (folder / "fingerprint" / "prefixes").mkdir(parents=True)
    await rig.collector.collect()
    assert cache.is_dir() and others.is_dir()
    await rig.store.delete(parse_name("m"))
    await rig.collector.collect([SOURCE])
    assert not cache.exists() and others.is_dir()
    rig.age(others)
    await rig.collector.collect()
    assert not others.exists()
