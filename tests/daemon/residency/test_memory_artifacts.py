"""Artifacts in memory: what is planned, refused, made and removed. Conversion itself is a stand-in."""

from __future__ import annotations

import os
import pathlib
from collections.abc import AsyncGenerator

import msgspec
import pytest

from backends.scripted.make import scripted_artifact, write_artifact
from backends.scripted.script import Script
from backends.select import Choice
from converters.artifact import ARTIFACT_FORMAT
from converters.inspection import Inspection, MemoryEstimate
from converters.vision_artifact import VISION_FILE, ImageForm, VisionArtifact
from daemon.errors import LoadFailed, NoSpace
from daemon.residency.loading import too_large
from daemon.residency.memory_artifacts import MemoryArtifacts
from daemon.residency.placement import Placement

CHOICE = Choice(backend="scripted", target="scripted", device="cpu", reason="")
DIGEST = "ab" * 32
SEEN = Inspection(
    digest=DIGEST,
    size=4,
    estimates={"scripted": 1000},
    memory={"scripted": MemoryEstimate(resident_bytes=500, kv_bytes_per_token=7, context_length=9)},
)


EYES = Inspection(
    digest="cd" * 32,
    size=4,
    projector_type="gemma3",
    vision_estimates={"scripted": 50},
    vision_memory={"scripted": 60},
)
TOWER = VisionArtifact(
    format=ARTIFACT_FORMAT,
    converter=1,
    source=EYES.digest,
    variant="vision-scripted",
    form=ImageForm(projector="gemma3", patch_size=14),
    width=scripted_artifact(Script(), DIGEST, "").embedding_length,
    resident_bytes={"cpu": 700},
    run_bytes=90,
)


class WritesInto:
    """Conversions into the root that they are given."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    async def ensure_artifact(
        self, source: str, target: str, *, artifacts: pathlib.Path | None = None
    ) -> AsyncGenerator[object]:
        folder = self.artifact_folder(source, target, artifacts=artifacts)
        yield "half"
        if self._error is not None:
            folder.mkdir(parents=True)
            raise self._error
        write_artifact(folder, Script())

    def artifact_folder(
        self, source: str, target: str, *, artifacts: pathlib.Path | None = None
    ) -> pathlib.Path:
        assert artifacts is not None
        return artifacts / source / target

    async def ensure_vision(
        self, source: str, target: str, *, artifacts: pathlib.Path | None = None
    ) -> AsyncGenerator[object]:
        folder = self.vision_folder(source, target, artifacts=artifacts)
        yield "half"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / VISION_FILE).write_bytes(msgspec.json.encode(TOWER))

    def vision_folder(
        self, source: str, target: str, *, artifacts: pathlib.Path | None = None
    ) -> pathlib.Path:
        assert artifacts is not None
        return artifacts / source / f"vision-{target}"


def planned(memory: MemoryArtifacts, digest: str = DIGEST) -> Placement:
    return memory.plan("m:latest", digest, CHOICE, SEEN, "the disk lacks 5")


def planned_to_see(memory: MemoryArtifacts, digest: str) -> Placement:
    return memory.plan("m:latest", digest, CHOICE, SEEN, "the disk lacks 5", EYES)


async def test_models_with_the_same_eyes_share_them(tmp_path: pathlib.Path) -> None:
    memory = MemoryArtifacts(tmp_path, WritesInto())
    placements = [planned_to_see(memory, digest) for digest in (DIGEST, EYES.digest)]
    assert (placements[0].weight_bytes, placements[0].tower_bytes) == (1000 + 50 + 500 + 60, 60)
    made = [await memory.make(placement) for placement in placements]
    tower = pathlib.Path(made[0].projector)
    for planned_one, one in zip(placements, made, strict=True):
        assert one.key(64) == planned_one.key(64)
        assert (one.projector, one.tower_bytes) == (str(tower), 790)
        assert one.in_memory is not None
        files = [*pathlib.Path(one.artifact).iterdir(), *tower.iterdir()]
        assert one.in_memory.artifact_bytes == sum(path.stat().st_size for path in files)
    await memory.discard(made[0])
    assert tower.is_dir()
    await memory.discard(made[0])
    assert tower.is_dir()
    await memory.discard(made[1])
    (root,) = tmp_path.iterdir()
    assert not list(root.iterdir())
    await memory.close()


async def test_a_placement_counts_the_artifact_and_what_is_made_goes_again(
    tmp_path: pathlib.Path,
) -> None:
    memory = MemoryArtifacts(tmp_path, WritesInto())
    placement = planned(memory)
    assert (placement.weight_bytes, placement.needed_bytes(10)) == (1500, 1570)
    assert placement.max_context_length == 9
    (root,) = tmp_path.iterdir()
    assert root.stat().st_mode & 0o777 == 0o700
    made = await memory.make(placement)
    held = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    assert made.in_memory is not None
    assert held == made.in_memory.artifact_bytes > 0
    assert made.weight_bytes == held + (1 << 20)
    assert made.artifact == placement.artifact
    await memory.discard(made)
    assert not list(root.iterdir())
    await memory.close()
    assert not list(tmp_path.iterdir())


async def test_a_failed_conversion_leaves_nothing_and_states_both_sizes(
    tmp_path: pathlib.Path,
) -> None:
    memory = MemoryArtifacts(tmp_path, WritesInto(NoSpace("memory lacks 6")))
    with pytest.raises(
        LoadFailed, match=r"disk \(the disk lacks 5\) nor in memory \(memory lacks 6"
    ):
        await memory.make(planned(memory))
    (root,) = tmp_path.iterdir()
    assert not list(root.iterdir())
    await memory.close()


async def test_where_there_is_no_memory_to_convert_into_both_sizes_are_stated() -> None:
    memory = MemoryArtifacts(None, WritesInto(), measure_free=lambda _: 77)
    with pytest.raises(LoadFailed) as refused:
        planned(memory)
    text = refused.value.message
    assert "'m:latest'" in text and "the disk lacks 5" in text
    assert "no filesystem in memory" in text and "takes 1500 bytes, 77 bytes free" in text


async def test_only_what_the_dead_left_is_swept(tmp_path: pathlib.Path) -> None:
    left = tmp_path / f"hearth-{os.getuid()}-left"
    (left / "deep").mkdir(parents=True)
    somebody_else = tmp_path / "hearth-notes"
    somebody_else.mkdir()
    (tmp_path / f"hearth-{os.getuid()}-link").symlink_to(somebody_else)
    alive = MemoryArtifacts(tmp_path, WritesInto())
    made = await alive.make(planned(alive))
    await MemoryArtifacts(tmp_path, WritesInto()).start()
    assert not left.exists()
    assert somebody_else.is_dir()
    assert pathlib.Path(made.artifact).is_dir()
    await alive.close()


async def test_a_refusal_for_lack_of_memory_names_the_disk_too(tmp_path: pathlib.Path) -> None:
    memory = MemoryArtifacts(tmp_path, WritesInto())
    error = too_large("m:latest", 3 << 30, 1 << 30, planned(memory))
    await memory.close()
    assert "requires more system memory (3.0 GiB) than is available (1.0 GiB)" in error.message
    assert "no room (the disk lacks 5)" in error.message
