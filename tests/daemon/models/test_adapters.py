"""Adapters on the shelf, with the real converter: created, refused, shared, pulled, collected."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import AsyncIterator

import pytest

from backends.select import Choice
from converters.artifact import adapter_folder, read_adapter, variant_folder
from converters.gguf import read_header
from daemon.errors import DaemonError, Invalid, LoadFailed, NotYet
from daemon.models import manifest as media
from daemon.models.artifact_collection import ArtifactCollector
from daemon.models.create_request import CreateRequest
from daemon.models.describe import show
from daemon.models.foreign.shelf import ForeignShelf
from daemon.models.jobs import CONVERTER_COMMAND
from daemon.models.name import parse_name
from daemon.models.resolved import ResolvedModel
from daemon.residency.placement import ArtifactPlacer
from tests.converters.imports.test_peft import Folder
from tests.daemon.models.registry.pulling import CONFIG, PullingShelf, texts
from tests.daemon.models.shelf import TARGET, hex_of
from tests.models.random_adapter import make_adapter, random_matrices
from tests.models.random_gguf import SIZES, make_gguf
from tests.registry.server import Registry


class Files:
    """One base, an adapter of it, one that fits no such base, and one of another architecture."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.path = make_gguf(folder / "base.gguf", types="Q8_0", **SIZES["0.1M"])
        self.base = self.path.read_bytes()
        self.adapter = make_adapter(folder / "lora.gguf", self.path).read_bytes()
        other = make_gguf(folder / "other.gguf", types="F32", blocks=1)
        self.other = make_adapter(folder / "misfit.gguf", other).read_bytes()
        self.foreign = make_adapter(
            folder / "foreign.gguf", self.path, architecture="qwen2"
        ).read_bytes()
        embedding = random_matrices(self.path, targets="token_embd", rank=2)
        self.embedding = make_adapter(folder / "e.gguf", self.path, embedding).read_bytes()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("files"))


@pytest.fixture
async def shelf(tmp_path: pathlib.Path) -> AsyncIterator[PullingShelf]:
    shelf = PullingShelf(tmp_path / "shelf", command=CONVERTER_COMMAND)
    yield shelf
    await shelf.puller.close()
    await shelf.conversions.close()


async def named(shelf: PullingShelf, **files: bytes) -> dict[str, str]:
    return {f"{name}.gguf": f"sha256:{await shelf.put(data)}" for name, data in files.items()}


def resolve(shelf: PullingShelf, name: str) -> ResolvedModel:
    return shelf.store.resolve(parse_name(name))


def folder_of(shelf: PullingShelf, files: Files) -> pathlib.Path:
    name = adapter_folder(variant_folder(TARGET), hex_of(files.base))
    return shelf.artifacts / hex_of(files.adapter) / name


async def test_over_a_model(shelf: PullingShelf, files: Files) -> None:
    await shelf.make("base", files.base, system="be kind")
    adapters = await named(shelf, lora=files.adapter)
    statuses = await shelf.create(model="tuned", source="base", adapters=adapters)
    assert statuses[0] == "parsing GGUF"
    assert "converting adapter" in statuses
    assert not any("converting to" in status for status in statuses)
    assert statuses[-1] == "success"
    model = resolve(shelf, "tuned")
    assert [layer.media_type for layer in model.manifest.layers] == [
        media.MODEL,
        media.ADAPTER,
        media.SYSTEM,
    ]
    (adapter,) = model.require_adapters()
    assert adapter.digest == hex_of(files.adapter)
    folder = folder_of(shelf, files)
    base_folder = shelf.conversions.artifact_folder(hex_of(files.base), TARGET)
    described = read_adapter(folder, base_folder)
    assert described.rank == 8
    shown = await show(model, shelf.conversions, shelf.creator.target_for)
    assert f"\nADAPTER {adapter.path}\n" in shown.modelfile
    assert shown.hearth.adapters[TARGET].matrices == len(described.targets) == 7
    # A persona of it shares all, and converts nothing.
    again = await shelf.create(model="persona", source="tuned", system="be brief")
    assert not any("convert" in status for status in again)
    assert resolve(shelf, "persona").adapters == model.adapters


async def test_with_the_weights(shelf: PullingShelf, files: Files) -> None:
    weights, adapters = (
        await named(shelf, base=files.base),
        await named(shelf, lora=files.adapter),
    )
    statuses = await shelf.create(model="tuned", files=weights, adapters=adapters)
    order = [status for status in dict.fromkeys(statuses) if "convert" in status]
    assert order == [f"converting to {TARGET}", "converting adapter"]
    assert folder_of(shelf, files).is_dir()


@pytest.mark.parametrize(
    ("names", "error", "says"),
    [
        (("foreign",), Invalid, "'qwen2' models"),
        (("other",), Invalid, "shape"),
        (("embedding",), NotYet, "the embedding"),
        (("base",), Invalid, "base.gguf is a model, and not an adapter"),
        (("adapter", "foreign"), Invalid, "only one adapter is currently supported"),
        ((), Invalid, "no files provided to convert"),
    ],
)
async def test_what_does_not_fit_is_refused_before_anything_is_written(
    shelf: PullingShelf,
    files: Files,
    names: tuple[str, ...],
    error: type[DaemonError],
    says: str,
) -> None:
    weights = await named(shelf, weights=files.base)
    adapters = await named(shelf, **{name: getattr(files, name) for name in names})
    with pytest.raises(error, match=says):
        await shelf.create(model="m", files=weights, adapters=adapters)
    assert shelf.store.names() == []
    assert not shelf.artifacts.exists() or list(shelf.artifacts.iterdir()) == []


async def test_a_peft_folder_becomes_a_gguf_adapter(
    shelf: PullingShelf, files: Files, tmp_path: pathlib.Path
) -> None:
    await shelf.make("base", files.base)
    matrices = {"self_attn.q_proj": "attn_q", "mlp.down_proj": "ffn_down"}
    folder = Folder(tmp_path / "peft", files.path, matrices, blocks=1, heads=2, kv_heads=1).write()
    adapters = {
        f"checkpoint/{path.name}": f"sha256:{await shelf.put(path.read_bytes())}"
        for path in folder.iterdir()
    }
    statuses = await shelf.create(model="tuned", source="base", adapters=adapters)
    assert [s for s in dict.fromkeys(statuses) if "convert" in s] == ["converting adapter"]
    (adapter,) = resolve(shelf, "tuned").require_adapters()
    assert len(read_header(adapter.path).tensors) == 4
    folder = shelf.conversions.adapter_folder(adapter.digest, hex_of(files.base), TARGET)
    assert folder.is_dir()
    assert sorted(each.name for each in shelf.artifacts.iterdir() if each.is_dir()) == sorted(
        (adapter.digest, hex_of(files.base))
    )
    digest = next(iter(adapters.values()))
    for names, error, says in (
        (("adapters.safetensors", "adapter_config.json"), NotYet, "as PEFT writes them"),
        (("a.safetensors", "b.safetensors"), Invalid, "only one adapter"),
        (("adapter_model.bin", "a.safetensors"), NotYet, "pickled weights"),
    ):
        with pytest.raises(error, match=says):
            given = dict.fromkeys(names, digest)
            await shelf.create(model="x", source="base", adapters=given)


async def test_a_second_adapter_is_refused(shelf: PullingShelf, files: Files) -> None:
    weights = await named(shelf, base=files.base)
    adapters = await named(shelf, lora=files.adapter)
    await shelf.create(model="tuned", files=weights, adapters=adapters)
    with pytest.raises(Invalid, match="only one adapter is currently supported"):
        await shelf.create(model="twice", source="tuned", adapters=adapters)
    assert [name.short for name in shelf.store.names()] == ["tuned:latest"]


@pytest.mark.parametrize("stop_at", [1, 4, 7])
async def test_leaving_early_shows_nothing_half(
    shelf: PullingShelf, files: Files, stop_at: int
) -> None:
    await shelf.make("base", files.base)
    adapters = await named(shelf, lora=files.adapter)
    request = CreateRequest(model="tuned", source="base", adapters=adapters)
    seen: list[str] = []
    async with contextlib.aclosing(shelf.creator.create(request)) as statuses:
        async for line in statuses:
            seen.append(line.status)
            if len(seen) == stop_at:
                break
    is_there = "tuned:latest" in [name.short for name in shelf.store.names()]
    assert is_there is (seen[-1] == "success")
    assert shelf.staging() == []


async def test_a_placement_names_the_adapter(shelf: PullingShelf, files: Files) -> None:
    weights = await named(shelf, base=files.base)
    adapters = await named(shelf, lora=files.adapter)
    await shelf.create(model="tuned", files=weights, adapters=adapters)
    await shelf.create(model="plain", files=weights)

    async def choose(_: ResolvedModel) -> Choice:
        return Choice(backend="onnx", target=TARGET, device="cpu", reason="")

    placer = ArtifactPlacer(shelf.conversions, choose)
    tuned, plain = [await placer.place(resolve(shelf, name)) for name in ("tuned", "plain")]
    assert tuned.adapters == (str(folder_of(shelf, files)),)
    assert tuned.artifact == plain.artifact
    assert tuned.weight_bytes > plain.weight_bytes
    assert tuned.key(64) != plain.key(64)
    resolve(shelf, "tuned").adapters[0].path.unlink()
    with pytest.raises(LoadFailed, match="damaged: blob"):
        await placer.place(resolve(shelf, "tuned"))


async def test_pulled_with_its_model(shelf: PullingShelf, files: Files) -> None:
    async with Registry() as registry:
        layers = [("model", files.base), ("adapter", files.adapter)]
        registry.add_model("library/m", "latest", layers, CONFIG)
        found = texts(await shelf.pull(registry))
        assert found[-2:] == ["converting adapter", "success"]
        assert folder_of(shelf, files).is_dir()
        layers = [("model", files.base), ("adapter", files.foreign)]
        registry.add_model("library/misfit", "latest", layers, CONFIG)
        with pytest.raises(Invalid, match="'qwen2' models"):
            await shelf.pull(registry, "misfit")
        layers = [("model", files.base), ("adapter", files.adapter), ("adapter", files.other)]
        registry.add_model("library/two", "latest", layers, CONFIG)
        with pytest.raises(NotYet, match="only one adapter"):
            await shelf.pull(registry, "two")
    assert len(shelf.store.names()) == 1


async def test_collected_with_its_base(shelf: PullingShelf, files: Files) -> None:
    weights = await named(shelf, base=files.base)
    adapters = await named(shelf, lora=files.adapter)
    await shelf.create(model="tuned", files=weights, adapters=adapters)
    foreign = ForeignShelf(shelf.store, shelf.home, ())
    collector = ArtifactCollector(
        shelf.store, foreign, shelf.conversions, home=shelf.home, artifacts=shelf.artifacts
    )
    folder = folder_of(shelf, files)
    orphan = folder.with_name(adapter_folder(variant_folder(TARGET), "0" * 64))
    orphan.mkdir()
    (orphan / "adapter.bin").write_bytes(b"12345")
    assert await collector.collect() == 5
    assert folder.is_dir()
    assert not orphan.exists()
    await shelf.store.delete(parse_name("tuned"))
    assert await collector.collect([hex_of(files.base), hex_of(files.adapter)]) > 5
    assert not folder.parent.exists()
