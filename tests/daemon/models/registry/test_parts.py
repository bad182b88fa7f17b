"""A blob's files on their way: what a power cut, another process and another server's files do."""

from __future__ import annotations

import json
import os
import pathlib

import pytest

from daemon.models.registry import parts as parts_module
from daemon.models.registry.parts import PartialBlob, plan_parts


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "MIN_PART_BYTES", 100)


def opened(folder: pathlib.Path, size: int = 1000) -> PartialBlob:
    partial = PartialBlob(folder / "sha256-aa", size)
    assert partial.open()
    return partial


@pytest.mark.parametrize(
    ("total", "sizes"),
    [(0, []), (50, [50]), (250, [100, 100, 50]), (16 * 300, [300] * 16)],
)
def test_parts_tile_the_blob(total: int, sizes: list[int]) -> None:
    parts = plan_parts(total)
    assert [part.size for part in parts] == sizes
    assert [part.offset for part in parts] == [sum(sizes[:n]) for n in range(len(sizes))]


def test_only_what_was_saved_is_believed(tmp_path: pathlib.Path) -> None:
    partial = opened(tmp_path)
    partial.append(partial.parts[1], [b"ab", b"cd"])
    partial.save()
    partial.append(partial.parts[1], [b"ef"])
    partial.close()
    again = opened(tmp_path)
    assert [part.completed for part in again.parts][:3] == [0, 4, 0]
    again.append(again.parts[1], [b"XY"])
    assert again.path.read_bytes()[100:106] == b"abcdXY"
    again.close()


def test_state_files_are_the_fields(tmp_path: pathlib.Path) -> None:
    partial = opened(tmp_path)
    partial.append(partial.parts[2], [b"x" * 30])
    partial.save()
    partial.close()
    text = (tmp_path / "sha256-aa-partial-2").read_text()
    assert text == '{"N":2,"Offset":200,"Size":100,"Completed":30}\n'


def test_another_servers_download_is_taken_up(tmp_path: pathlib.Path) -> None:
    (tmp_path / "sha256-aa-partial").write_bytes(b"y" * 1000)
    for n in range(2):
        state = {"N": n, "Offset": 500 * n, "Size": 500, "Completed": 100}
        (tmp_path / f"sha256-aa-partial-{n}").write_text(json.dumps(state))
    partial = opened(tmp_path)
    assert [(part.offset, part.completed) for part in partial.parts] == [(0, 100), (500, 100)]
    partial.close()


def test_a_record_beyond_the_file_is_cut(tmp_path: pathlib.Path) -> None:
    partial = opened(tmp_path)
    partial.append(partial.parts[0], [b"x" * 100])
    partial.append(partial.parts[1], [b"x" * 100])
    partial.save()
    partial.close()
    os.truncate(partial.path, 150)
    again = opened(tmp_path)
    assert [part.completed for part in again.parts][:3] == [100, 50, 0]
    again.close()


@pytest.mark.parametrize("text", ["", "{", '{"N":0,"Offset":0,"Size":-1}', '{"N":0}', "[]"])
def test_a_damaged_record_begins_anew(tmp_path: pathlib.Path, text: str) -> None:
    partial = opened(tmp_path)
    partial.append(partial.parts[0], [b"x" * 100])
    partial.save()
    partial.close()
    (tmp_path / "sha256-aa-partial-3").write_text(text)
    again = opened(tmp_path)
    assert again.written_bytes() == 0
    again.close()


def test_one_writer_at_a_time(tmp_path: pathlib.Path) -> None:
    partial = opened(tmp_path)
    other = PartialBlob(tmp_path / "sha256-aa", 1000)
    assert not other.open()
    partial.close()
    assert other.open()
    other.close()


def test_finished_leaves_the_blob_alone(tmp_path: pathlib.Path) -> None:
    partial = opened(tmp_path)
    (tmp_path / ".tmp-sha256-aa-partial-1").write_text("of a killed daemon")
    partial.append(partial.parts[0], [b"x" * 100])
    partial.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["sha256-aa"]


def test_many_chunks_are_written_in_order(tmp_path: pathlib.Path) -> None:
    partial = opened(tmp_path, 3000)
    partial.append(partial.parts[0], [bytes([n % 251]) for n in range(100)])
    partial.close()
    assert partial.path.read_bytes()[:100] == bytes(range(100))
    assert partial.path.stat().st_size == 3000


def test_a_link_is_not_followed(tmp_path: pathlib.Path) -> None:
    (tmp_path / "precious").write_bytes(b"p")
    (tmp_path / "sha256-aa-partial").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic"):
        PartialBlob(tmp_path / "sha256-aa", 1000).open()
    assert (tmp_path / "precious").read_bytes() == b"p"
