"""Local files onto the shelf: by the stand-in, and a real GGUF by the real converter."""

import contextlib
import os
import pathlib
import signal
from collections.abc import AsyncIterator

import pytest

from daemon.errors import DaemonError, Invalid, LoadFailed, NotFound, NotYet, StoreReadOnly
from daemon.models.bundled import add_bundled_model
from daemon.models.describe import show
from daemon.models.jobs import CONVERTER_COMMAND
from daemon.models.name import parse_name
from daemon.models.shelving import import_file
from daemon.models.store import Store
from tests.daemon.models.shelf import TARGET, Shelf, gguf, hex_of
from tests.models.random_gguf import make_gguf


@pytest.fixture
async def shelf(tmp_path: pathlib.Path) -> AsyncIterator[Shelf]:
    shelf = Shelf(tmp_path)
    yield shelf
    await shelf.conversions.close()


@pytest.fixture
async def real_shelf(tmp_path: pathlib.Path) -> AsyncIterator[Shelf]:
    shelf = Shelf(tmp_path, CONVERTER_COMMAND)
    yield shelf
    await shelf.conversions.close()
    assert shelf.staging() == []


async def imported(shelf: Shelf, path: pathlib.Path, name: str = "m") -> list[str]:
    stream = import_file(shelf.store, shelf.conversions, shelf.creator, path, name)
    return [status.status async for status in stream]


async def test_import(shelf: Shelf, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "some.gguf"
    file.write_bytes(gguf())
    statuses = await imported(shelf, file)
    assert statuses[:2] == ["inspecting some.gguf", "importing some.gguf"]
    assert statuses[-1] == "success"
    model = shelf.store.resolve(parse_name("m"))
    assert model.parent_model == "some.gguf"
    assert model.require_weights().path.stat().st_ino == file.stat().st_ino


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (gguf(fail="malformed", fails_at="inspect"), Invalid, "says malformed"),
        (gguf(refused=True), NotYet, "no recipe"),
        (gguf(kind="projector"), NotYet, "projector"),
    ],
)
async def test_refused_before_a_byte_is_taken(
    shelf: Shelf, tmp_path: pathlib.Path, data: bytes, error: type[DaemonError], text: str
) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(data)
    with pytest.raises(error, match=text):
        await imported(shelf, file)
    assert list(shelf.store.blobs.files()) == []


async def test_paths_and_names_are_checked(shelf: Shelf, tmp_path: pathlib.Path) -> None:
    with pytest.raises(Invalid, match="absolute"):
        await imported(shelf, pathlib.Path("a.gguf"))
    with pytest.raises(Invalid, match="invalid model name"):
        await imported(shelf, tmp_path / "a", "../x")
    with pytest.raises(NotFound, match="is not a file that the daemon can read"):
        await imported(shelf, tmp_path / "absent.gguf")


async def test_leaving_an_import_leaves_nothing_half(shelf: Shelf, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(gguf(steps=100, seconds=0.05))
    stream = import_file(shelf.store, shelf.conversions, shelf.creator, file, "m")
    async with contextlib.aclosing(stream) as statuses:
        async for status in statuses:
            if status.status == f"converting to {TARGET}":
                break
    assert shelf.store.names() == []
    assert shelf.staging() == []
    assert shelf.conversions.jobs() == []


async def test_a_read_only_store_refuses(shelf: Shelf, tmp_path: pathlib.Path) -> None:
    store = Store(shelf.store.root, None)
    stream = import_file(store, shelf.conversions, shelf.creator, tmp_path / "a", "m")
    with pytest.raises(StoreReadOnly):
        await anext(stream)


async def test_bundled_model_comes_to_an_empty_shelf_only(
    shelf: Shelf, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "ember.gguf"
    assert not await add_bundled_model(shelf.store, shelf.conversions, shelf.creator, file)
    file.write_bytes(gguf())
    assert await add_bundled_model(shelf.store, shelf.conversions, shelf.creator, file)
    assert [name.short for name in shelf.store.names()] == ["ember:latest"]
    assert not await add_bundled_model(shelf.store, shelf.conversions, shelf.creator, file)


async def test_a_real_file_by_the_real_converter(real_shelf: Shelf, tmp_path: pathlib.Path) -> None:
    file = make_gguf(tmp_path / "small.gguf", types="Q4_K_M")
    statuses = await imported(real_shelf, file)
    assert statuses[-1] == "success"
    digest = hex_of(file.read_bytes())
    artifact = real_shelf.conversions.artifact(digest, TARGET)
    assert artifact is not None
    assert artifact.source == digest
    model = real_shelf.store.resolve(parse_name("m"))
    target_for = real_shelf.creator.target_for
    answer = await show(model, real_shelf.conversions, target_for, verbose=True)
    assert answer.model_info["general.architecture"] == "llama"
    assert answer.model_info["tokenizer.ggml.tokens"] is not None
    assert answer.hearth.artifacts[TARGET].file_bytes == artifact.file_bytes


async def test_junk_is_refused_by_the_real_inspector(
    real_shelf: Shelf, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "junk.gguf"
    file.write_bytes(b"GGUF\3\0\0\0" + b"\xff" * 4096)
    with pytest.raises(Invalid):
        await imported(real_shelf, file)


async def test_the_real_converter_killed_in_mid_write(
    real_shelf: Shelf, tmp_path: pathlib.Path
) -> None:
    file = make_gguf(tmp_path / "b.gguf", types="Q8_0", blocks=6, embedding=1024, heads=8,
                     feed_forward=4096)  # fmt: skip
    with pytest.raises(LoadFailed, match="SIGKILL"):
        await _import_and_kill(real_shelf, file)
    assert real_shelf.store.names() == []
    assert real_shelf.staging() == []
    assert (await imported(real_shelf, file))[-1] == "success"


async def _import_and_kill(shelf: Shelf, file: pathlib.Path) -> None:
    stream = import_file(shelf.store, shelf.conversions, shelf.creator, file, "m")
    async for status in stream:
        for name in shelf.staging():
            if status.status == f"converting to {TARGET}" and status.completed:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(name.rpartition("-")[2]), signal.SIGKILL)
