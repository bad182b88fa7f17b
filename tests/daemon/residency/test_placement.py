"""From a resolved model to what must be loaded, by way of conversions and the choice of backend."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncGenerator

import msgspec
import pytest

from backends.scripted.make import scripted_artifact, write_artifact
from backends.scripted.script import Script
from backends.select import Choice
from converters.artifact import ARTIFACT_FORMAT, RopeTable
from converters.inspection import Inspection
from converters.vision_artifact import VISION_FILE, ImageForm, VisionArtifact
from daemon.errors import Busy, DaemonError, LoadFailed, NotYet
from daemon.models.resolved import BlobFile, ResolvedModel
from daemon.residency.placement import ArtifactPlacer, Placement, placement_of
from tests.daemon.residency.shelf import model

CHOICE = Choice(backend="scripted", target="scripted", device="cpu", reason="")
DIGEST = "ab" * 32
EYES = "cd" * 32


class WritesOnDemand:
    """Conversions that make a scripted artifact, or none at all."""

    def __init__(self, folder: pathlib.Path, *, works: bool = True) -> None:
        self._folder = folder
        self._works = works
        self.asked: list[tuple[str, str]] = []
        self.blind: dict[str, str] = {}
        self.error: DaemonError | None = None
        self.tower = VisionArtifact(
            format=ARTIFACT_FORMAT,
            converter=1,
            source=EYES,
            variant="vision-scripted",
            form=ImageForm(projector="gemma3", patch_size=14),
            width=scripted_artifact(Script(), DIGEST, "").embedding_length,
            resident_bytes={"cpu": 700},
            run_bytes=90,
        )

    async def inspect(self, digest: str) -> Inspection:
        kind = "gemma3" if digest == EYES else ""
        return Inspection(digest=digest, size=4, projector_type=kind, vision_refusals=self.blind)

    async def ensure_vision(self, source: str, target: str) -> AsyncGenerator[object]:
        self.asked.append((source, f"vision-{target}"))
        yield "half"
        if self.error:
            raise self.error
        folder = self.vision_folder(source, target)
        folder.mkdir(parents=True)
        (folder / VISION_FILE).write_bytes(msgspec.json.encode(self.tower))

    def vision_folder(self, source: str, target: str) -> pathlib.Path:
        return self._folder / source / f"vision-{target}"

    async def ensure_artifact(self, source: str, target: str) -> AsyncGenerator[object]:
        self.asked.append((source, target))
        yield "half"
        if self._works:
            write_artifact(self.artifact_folder(source, target), Script())

    def artifact_folder(self, source: str, target: str) -> pathlib.Path:
        return self._folder / source / target

    async def ensure_adapter(self, adapter: str, base: str, target: str) -> AsyncGenerator[object]:
        self.asked.append((adapter, base))
        yield target

    def adapter_folder(self, adapter: str, base: str, target: str) -> pathlib.Path:
        return self._folder / adapter / f"{target}-on-{base}"


async def choose(_: ResolvedModel) -> Choice:
    return CHOICE


def with_weights(folder: pathlib.Path) -> ResolvedModel:
    path = folder / "blob"
    path.write_bytes(b"GGUF")
    return msgspec.structs.replace(model("a"), weights=BlobFile(DIGEST, path, 4))


def with_eyes(folder: pathlib.Path) -> ResolvedModel:
    path = folder / "eyes"
    path.write_bytes(b"GGUF")
    eyes = BlobFile(EYES, path, 4)
    return msgspec.structs.replace(with_weights(folder), projectors=(eyes,))


async def test_eyes_are_converted_and_counted(tmp_path: pathlib.Path):
    conversions = WritesOnDemand(tmp_path)
    placer = ArtifactPlacer(conversions, choose)
    placement = await placer.place(with_eyes(tmp_path))
    assert conversions.asked == [(DIGEST, "scripted"), (EYES, "vision-scripted")]
    assert placement.projector == str(conversions.vision_folder(EYES, "scripted"))
    assert (placement.tower_bytes, placement.weight_bytes) == (790, (1 << 20) + 790)
    assert placement.blindness == ""
    plain = await placer.place(with_weights(tmp_path))
    assert plain.artifact == placement.artifact
    assert plain.key(64) != placement.key(64)


@pytest.mark.parametrize("reason", ["refused", "failed", "missing", "misfit"])
async def test_a_model_whose_eyes_are_of_no_use_still_reads(tmp_path: pathlib.Path, reason: str):
    conversions, seeing = WritesOnDemand(tmp_path), with_eyes(tmp_path)
    match reason:
        case "refused":
            conversions.blind = {"scripted": "the projector type 'x' is refused"}
        case "failed":
            conversions.error = LoadFailed("the conversion failed")
        case "missing":
            seeing.projectors[0].path.unlink()
        case _:
            conversions.tower = msgspec.structs.replace(conversions.tower, width=5)
            reason = "5 numbers"
    placement = await ArtifactPlacer(conversions, choose).place(seeing)
    assert (placement.projector, placement.tower_bytes) == ("", 0)
    assert placement.weight_bytes == 1 << 20
    assert reason in placement.blindness


async def test_a_daemon_that_stops_is_no_reason_to_be_blind(tmp_path: pathlib.Path):
    conversions = WritesOnDemand(tmp_path)
    conversions.error = Busy("stopping")
    with pytest.raises(Busy):
        await ArtifactPlacer(conversions, choose).place(with_eyes(tmp_path))


async def test_it_converts_then_reads_the_artifact(tmp_path: pathlib.Path):
    conversions = WritesOnDemand(tmp_path)
    placement = await ArtifactPlacer(conversions, choose).place(with_weights(tmp_path))
    assert conversions.asked == [(DIGEST, "scripted")]
    assert placement.artifact == str(tmp_path / DIGEST / "scripted")
    assert (placement.backend, placement.weight_bytes, placement.max_context_length) == (
        "scripted", 1 << 20, 4096,
    )  # fmt: skip
    assert placement.needed_bytes(1000) == (1 << 20) + 1000 * 1024


async def test_an_unreadable_artifact_is_a_load_failure(tmp_path: pathlib.Path):
    placer = ArtifactPlacer(WritesOnDemand(tmp_path, works=False), choose)
    with pytest.raises(LoadFailed, match="model 'a:latest': scripted: no readable artifact"):
        await placer.place(with_weights(tmp_path))


async def test_what_cannot_be_loaded_is_refused_before_any_conversion(tmp_path: pathlib.Path):
    conversions = WritesOnDemand(tmp_path)
    placer = ArtifactPlacer(conversions, choose)
    adapters = (BlobFile(DIGEST, tmp_path, 1),) * 2
    adapted = msgspec.structs.replace(with_weights(tmp_path), adapters=adapters)
    with pytest.raises(NotYet, match="2 adapters: only one adapter"):
        await placer.place(adapted)
    with pytest.raises(LoadFailed, match="no GGUF weights"):
        await placer.place(model("a"))
    assert conversions.asked == []


@pytest.mark.parametrize(("size", "told"), [(0, []), (1 << 30, ["onnx-cuda"])])
async def test_memory_of_a_device_that_came_back_is_told(size: int, told: list[str]):
    """Who failed for want of it is tried again then."""
    given_back: list[str] = []
    placer = ArtifactPlacer(WritesOnDemand(pathlib.Path()), choose, gave_back=given_back.append)
    placement = Placement(backend="onnx", artifact="/a", target="onnx-cuda", device_bytes=size)
    await placer.discard(placement)
    assert given_back == told


def test_only_longrope_has_an_original_context_length():
    artifact = scripted_artifact(Script(), "0" * 64, "")
    plain = RopeTable(inverse_frequencies=(1.0,), original_context_length=2048)
    long = msgspec.structs.replace(plain, long_inverse_frequencies=(0.5,))
    for table, original, is_long in ((plain, 0, False), (long, 2048, True)):
        roped = msgspec.structs.replace(artifact, rope={"global": table})
        placement = placement_of(roped, pathlib.Path("/x"), CHOICE)
        assert placement.original_context_length == original
        assert placement.key(4096).is_long is is_long


def test_keys_and_values_are_counted_in_the_device_s_own_numbers():
    plain = scripted_artifact(Script(), DIGEST, "")
    wider = msgspec.structs.replace(plain, kv_bytes={"metal": 100, "cpu": 200})
    for artifact, device, expected in ((wider, "cpu", 200), (wider, "metal", 100)):
        choice = msgspec.structs.replace(CHOICE, device=device)
        placement = placement_of(artifact, pathlib.Path("/a"), choice)
        assert placement.needed_bytes(10) - placement.needed_bytes(0) == 10 * expected
    old = placement_of(
        plain, pathlib.Path("/a"), CHOICE
    )  # made before there were figures by device
    assert old.kv_bytes_per_token == plain.kv_bytes_per_token
