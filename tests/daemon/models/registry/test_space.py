"""Room for a model and its artifact: the pure decision."""

from __future__ import annotations

import pathlib

import pytest

from daemon.errors import NoSpace
from daemon.models.registry.space import Disk, disk_of, missing_bytes, plan_space


def plan(blob_bytes: int, artifact_bytes: int, blobs: Disk, artifacts: Disk) -> str:
    return plan_space(
        blob_bytes=blob_bytes,
        blobs=blobs,
        artifact_bytes=artifact_bytes,
        artifacts=artifacts,
        reserve_bytes=10,
    )


def test_both_fit() -> None:
    assert plan(50, 40, Disk(1, 60), Disk(2, 50)) == ""
    assert plan(50, 40, Disk(1, 100), Disk(1, 100)) == ""


def test_one_filesystem_is_counted_once() -> None:
    assert plan(50, 40, Disk(1, 99), Disk(1, 99)) == "100 bytes needed, 99 bytes free"


def test_only_the_artifact_does_not_fit() -> None:
    assert plan(50, 40, Disk(1, 60), Disk(2, 49)) == "50 bytes needed, 49 bytes free"


def test_the_model_does_not_fit() -> None:
    with pytest.raises(NoSpace, match="60 bytes needed, 59 bytes free"):
        plan(50, 0, Disk(1, 59), Disk(2, 10**9))


def test_nothing_to_fetch_needs_no_room() -> None:
    assert plan(0, 0, Disk(1, 0), Disk(1, 0)) == ""


def test_what_an_earlier_try_wrote_is_not_needed_again(tmp_path: pathlib.Path) -> None:
    blob = tmp_path / "blob"
    assert missing_bytes(blob, 10**6) == 10**6
    partial = tmp_path / "blob-partial"
    partial.write_bytes(b"x" * 500_000)
    assert 400_000 < missing_bytes(blob, 10**6) <= 500_000
    blob.write_bytes(b"x")
    assert missing_bytes(blob, 10**6) == 0


def test_a_folder_to_come_lies_where_its_parent_does(tmp_path: pathlib.Path) -> None:
    assert disk_of(tmp_path / "a" / "b").device == tmp_path.stat().st_dev
