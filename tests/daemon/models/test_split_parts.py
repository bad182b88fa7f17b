"""Parts of one model, told by their names; and merged onto the shelf by the real converter."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator

import pytest

from daemon.errors import Invalid, NotYet
from daemon.models.jobs import CONVERTER_COMMAND
from daemon.models.name import parse_name
from daemon.models.shelving import import_file
from daemon.models.split_parts import is_split_part, sibling_parts, wholes
from tests.daemon.models.shelf import Shelf
from tests.models.random_gguf import make_gguf
from tests.models.split_gguf import split


@pytest.fixture
async def shelf(tmp_path: pathlib.Path) -> AsyncIterator[Shelf]:
    shelf = Shelf(tmp_path, CONVERTER_COMMAND)
    yield shelf
    await shelf.conversions.close()
    assert list(shelf.artifacts.glob("*/gguf-*")) == []


def parts_of(folder: pathlib.Path) -> list[pathlib.Path]:
    return split(make_gguf(folder / "m.gguf"), 3)


def part(number: int, count: int) -> tuple[str, str]:
    return f"m-{number:05}-of-{count:05}.gguf", str(number)


def test_names_tell_the_parts():
    assert is_split_part("m-00001-of-00003.gguf")
    assert not is_split_part("m-00001-of-00001.gguf")
    assert not is_split_part("m.gguf")
    found = wholes([part(2, 2), ("mmproj.gguf", "p"), part(1, 2)])
    assert [(whole.name, whole.parts) for whole in found] == [
        ("m.gguf", ("1", "2")), ("mmproj.gguf", ("p",)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("named", "what"),
    [
        ([part(1, 3), part(3, 3)], "m-00002-of-00003.gguf is missing: all 3 parts are needed"),
        ([part(0, 2), part(1, 2), part(2, 2)], "parts beyond the 2"),
        ([part(1, 99999)], "at most 999 are merged"),
    ],
)
def test_parts_that_are_no_whole(named: list[tuple[str, str]], what: str):
    with pytest.raises(Invalid, match=what):
        wholes(named)


async def test_uploaded_parts_become_one_model(shelf: Shelf, tmp_path: pathlib.Path):
    paths = parts_of(tmp_path)
    files = {path.name: f"sha256:{await shelf.put(path.read_bytes())}" for path in paths}
    statuses = await shelf.create(model="mine", files=files)
    assert "merging parts" in statuses and statuses[-1] == "success"
    weights = shelf.store.resolve(parse_name("mine")).require_weights()
    whole = (tmp_path / "m.gguf").stat().st_size
    assert abs(weights.path.stat().st_size - whole) < 64
    assert all(files[path.name][-64:] != weights.digest for path in paths)


async def test_one_part_brings_the_others_beside_it(shelf: Shelf, tmp_path: pathlib.Path):
    paths = parts_of(tmp_path)
    assert sibling_parts(paths[-1]) == paths
    stream = import_file(shelf.store, shelf.conversions, shelf.creator, paths[1], "mine")
    assert [status.status async for status in stream][-1] == "success"
    paths[0].unlink()
    with pytest.raises(Invalid, match=r"m-00001-of-\d+.gguf is missing"):
        sibling_parts(paths[1])


async def test_an_unknown_architecture_is_refused_before_a_byte_is_written(
    shelf: Shelf, tmp_path: pathlib.Path
):
    paths = parts_of(tmp_path)
    for path in paths:
        path.write_bytes(path.read_bytes().replace(b"llama", b"lxama"))
    stream = import_file(shelf.store, shelf.conversions, shelf.creator, paths[0], "mine")
    with pytest.raises(NotYet, match="lxama"):
        async for _ in stream:
            pass
    assert shelf.store.is_empty()
