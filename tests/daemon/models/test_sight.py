"""Models with eyes on the shelf: made, pulled, described and removed. The converter obeys the file, or is the real one."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from backends.select import Choice
from converters.artifact import ArtifactError
from converters.vision_artifact import read_vision
from daemon.errors import Invalid
from daemon.models.artifact_collection import ArtifactCollector
from daemon.models.describe import ShowAnswer, list_models, show
from daemon.models.disk_use import measure
from daemon.models.foreign.catalogue import Catalogue
from daemon.models.foreign.shelf import ForeignShelf
from daemon.models.jobs import CONVERTER_COMMAND
from daemon.models.modelfile import parse
from daemon.models.name import parse_name
from daemon.models.resolved import ResolvedModel
from daemon.residency.placement import ArtifactPlacer
from tests.daemon.models.registry.pulling import CONFIG, PullingShelf, texts
from tests.daemon.models.shelf import TARGET, gguf, hex_of
from tests.models.library_vision import make_library_file
from tests.models.random_vision import make_projector, make_text
from tests.registry.server import Registry

WEIGHTS = gguf(what="weights")
EYES = gguf(kind="projector", eyes="gemma3")
BLIND_EYES = gguf(kind="projector", eyes="x", blind=True)
REFUSAL = "the projector type 'x' is not supported yet"
TOLD = "the model takes texts but no images here: "


@pytest.fixture
async def shelf(tmp_path: pathlib.Path) -> AsyncIterator[PullingShelf]:
    shelf = PullingShelf(tmp_path / "shelf")
    yield shelf
    await shelf.puller.close()
    await shelf.conversions.close()


async def uploaded(shelf: PullingShelf, *files: bytes) -> dict[str, str]:
    return {f"{i}.gguf": f"sha256:{await shelf.put(data)}" for i, data in enumerate(files)}


async def made(shelf: PullingShelf, name: str, *files: bytes) -> list[str]:
    return await shelf.create(model=name, files=await uploaded(shelf, *files))


async def shown(shelf: PullingShelf, name: str) -> ShowAnswer:
    model = shelf.store.resolve(parse_name(name))
    return await show(model, shelf.conversions, shelf.creator.target_for)


async def listed(shelf: PullingShelf) -> dict[str, tuple[str, ...]]:
    entries = await list_models(shelf.store, shelf.conversions, shelf.creator.target_for)
    return {entry.name: entry.capabilities for entry in entries}


def tower(shelf: PullingShelf, data: bytes) -> pathlib.Path:
    return shelf.conversions.vision_folder(hex_of(data), TARGET)


async def test_a_projector_gives_its_model_eyes(shelf: PullingShelf) -> None:
    statuses = await made(shelf, "sees", EYES, WEIGHTS)
    assert statuses.index("converting the vision tower") > statuses.index("converting to onnx-cpu")
    assert statuses[-1] == "success"
    assert read_vision(tower(shelf, EYES)).source == hex_of(EYES)
    answer = await shown(shelf, "sees")
    assert answer.capabilities == ("completion", "vision")
    assert answer.projector_info["general.architecture"] == "llama"  # the stand-in's word
    assert answer.hearth.vision is not None
    facts = msgspec.to_builtins(answer.hearth.vision)
    tower_facts = {"file_bytes": 555, "resident_bytes": {"cpu": 700, "cuda": 800}, "run_bytes": 90}
    assert facts == {"projector": "gemma3", "artifacts": {TARGET: tower_facts}}
    assert await listed(shelf) == {"sees:latest": ("completion", "vision")}
    paths = [str(shelf.store.blobs.path(hex_of(data))) for data in (WEIGHTS, EYES)]
    assert parse(answer.modelfile).values("from") == paths


async def test_what_cannot_be_converted_is_said_and_the_model_kept(shelf: PullingShelf) -> None:
    statuses = await made(shelf, "blind", WEIGHTS, BLIND_EYES)
    assert f"{TOLD}{REFUSAL}" in statuses
    assert statuses[-1] == "success"
    assert not tower(shelf, BLIND_EYES).exists()
    answer = await shown(shelf, "blind")
    assert answer.capabilities == ("completion",)
    assert answer.hearth.vision is not None
    assert (answer.hearth.vision.projector, answer.hearth.vision.refusal) == ("x", REFUSAL)
    assert await listed(shelf) == {"blind:latest": ("completion",)}


@pytest.mark.parametrize("when", ["inspect", "vision"])
async def test_a_failure_is_said_and_the_model_kept(shelf: PullingShelf, when: str) -> None:
    broken = gguf(kind="projector", eyes="gemma3", fail="malformed", fails_at=when)
    async with Registry() as registry:
        registry.add_model(
            "library/m", "latest", [("model", WEIGHTS), ("projector", broken)], CONFIG
        )
        found = texts(await shelf.pull(registry))
        assert f"{TOLD}the stand-in says malformed" in found
        assert found[-1] == "success"
        (name,) = shelf.store.names()
        answer = await shown(shelf, name.full)
        assert ("vision" in answer.capabilities) == (when == "vision")  # the next load tries again


async def test_a_tower_inside_the_weights(shelf: PullingShelf) -> None:
    own = gguf(eyes="gemma3")
    assert "converting the vision tower" in await made(shelf, "own", own)
    assert tower(shelf, own).parent == shelf.conversions.artifact_folder(hex_of(own), TARGET).parent
    assert (await shown(shelf, "own")).capabilities == ("completion", "vision")
    await made(shelf, "other", own, BLIND_EYES)
    answer = await shown(shelf, "other")
    assert "vision" not in answer.capabilities
    assert answer.hearth.vision is not None
    assert answer.hearth.vision.refusal == REFUSAL


async def test_of_several_projectors_the_first_is_used(shelf: PullingShelf) -> None:
    await made(shelf, "two", WEIGHTS, BLIND_EYES, EYES)
    answer = await shown(shelf, "two")
    assert answer.hearth.vision is not None
    assert (answer.hearth.vision.projector, answer.hearth.vision.unused_projectors) == ("x", 1)


async def test_a_projector_without_a_tower(shelf: PullingShelf) -> None:
    statuses = await made(shelf, "deaf", WEIGHTS, gguf(kind="projector"))
    assert f"{TOLD}its projector file has no vision tower" in statuses


async def test_eyes_for_a_model_that_has_none(shelf: PullingShelf) -> None:
    await made(shelf, "plain", WEIGHTS)
    files = await uploaded(shelf, EYES)
    statuses = await shelf.create(model="sees", source="plain", files=files)
    assert "converting the vision tower" in statuses
    assert len(shelf.runs()) == 2
    assert await listed(shelf) == {
        "plain:latest": ("completion",),
        "sees:latest": ("completion", "vision"),
    }
    await shelf.create(model="other", source="sees", files=await uploaded(shelf, BLIND_EYES))
    projectors = shelf.store.resolve(parse_name("other")).projectors
    assert [file.digest for file in projectors] == [hex_of(BLIND_EYES)]
    persona = await shelf.create(model="persona", source="sees", system="Be brief.")
    assert "converting the vision tower" not in persona
    assert (await shown(shelf, "persona")).capabilities == ("completion", "vision")


async def test_other_files_are_no_eyes(shelf: PullingShelf) -> None:
    await made(shelf, "plain", WEIGHTS)
    files = await uploaded(shelf, WEIGHTS)
    with pytest.raises(Invalid, match=r"unless the files are projectors; 0\.gguf is none"):
        await shelf.create(model="two", source="plain", files=files)
    with pytest.raises(Invalid, match="a projector alone is no model"):
        await made(shelf, "eyes", EYES)
    assert [name.short for name in shelf.store.names()] == ["plain:latest"]


async def test_pulled_with_its_projector(shelf: PullingShelf) -> None:
    async with Registry() as registry:
        layers = [("model", WEIGHTS), ("projector", EYES)]
        registry.add_model("library/m", "latest", layers, CONFIG)
        registry.add_model(
            "library/b", "latest", [("model", WEIGHTS), ("projector", BLIND_EYES)], CONFIG
        )
        found = texts(await shelf.pull(registry, "m"))
        assert found[-2:] == ["converting the vision tower", "success"]
        assert tower(shelf, EYES).is_dir()
        found = texts(await shelf.pull(registry, "b"))
        assert found[-2:] == [f"{TOLD}{REFUSAL}", "success"]
    senses = {name.split("/")[-1]: found for name, found in (await listed(shelf)).items()}
    assert senses == {"m:latest": ("completion", "vision"), "b:latest": ("completion",)}


async def test_towers_are_counted_and_collected(shelf: PullingShelf) -> None:
    await made(shelf, "sees", WEIGHTS, EYES)
    foreign = ForeignShelf(shelf.store, shelf.home, ())
    use = measure(shelf.store, Catalogue(), foreign.ledger, [], shelf.artifacts)
    (counted,) = [one for one in use.artifacts if one.source == hex_of(EYES)]
    assert (counted.target, counted.models) == (tower(shelf, EYES).name, ("sees:latest",))
    assert counted.size > 0
    collector = ArtifactCollector(
        shelf.store, foreign, shelf.conversions, home=shelf.home, artifacts=shelf.artifacts
    )
    assert await collector.collect() == 0
    await shelf.store.delete(parse_name("sees"))
    assert await collector.collect([hex_of(WEIGHTS), hex_of(EYES)]) > counted.size
    with pytest.raises(ArtifactError):
        read_vision(tower(shelf, EYES))


@pytest.mark.parametrize("has_projector", [True, False])
async def test_a_real_tower_by_the_real_converter(
    tmp_path: pathlib.Path, has_projector: bool
) -> None:
    """In a projector file, and inside the weights as Ollama's library has it."""
    text = make_text(tmp_path / "text.gguf", "gemma3")
    projector = make_projector(tmp_path / "mmproj.gguf", "gemma3")
    files = [text.read_bytes(), projector.read_bytes()]
    if not has_projector:
        files = [make_library_file(tmp_path / "one.gguf", "gemma3", text, projector).read_bytes()]
    shelf = PullingShelf(tmp_path / "real", command=CONVERTER_COMMAND)
    statuses = await made(shelf, "m", *files)
    assert "converting the vision tower" in statuses
    assert (await shown(shelf, "m")).capabilities == ("completion", "vision")

    async def choose(_: ResolvedModel) -> Choice:
        return Choice(backend="onnx", target=TARGET, device="cpu", reason="")

    model = shelf.store.resolve(parse_name("m"))
    placement = await ArtifactPlacer(shelf.conversions, choose).place(model)
    assert (placement.projector, placement.blindness) == (str(tower(shelf, files[-1])), "")
    assert placement.weight_bytes > placement.tower_bytes > 0
    await shelf.conversions.close()
