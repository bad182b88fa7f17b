"""Creating with `quantize`: statuses, what is refused, and that nothing stays of what did not succeed."""

import asyncio
import contextlib
import os
import pathlib
from collections.abc import AsyncIterator

import pytest

from converters.inspection import Inspection, TensorSummary
from daemon.errors import DaemonError, Internal, LoadFailed, NotYet
from daemon.models.create_request import CreateRequest, CreateStatus
from daemon.models.jobs import CONVERTER_COMMAND
from daemon.models.name import parse_name
from daemon.models.quantising import checked_type, float_type, sweep_quantising
from daemon.models.tensor_folder import folder_files
from tests.daemon.models.shelf import TARGET, Shelf, gguf, hex_of, until
from tests.models.hugging_face import make_folder

NOT_FLOATS = "quantization is only supported for F16, BF16 and F32 models"


@pytest.fixture
async def shelf(tmp_path: pathlib.Path) -> AsyncIterator[Shelf]:
    shelf = Shelf(tmp_path)
    yield shelf
    await shelf.conversions.close()


def floats(**wanted: object) -> bytes:
    return gguf(types="F16", file_type="F16", **wanted)


def folder(shelf: Shelf) -> pathlib.Path:
    return shelf.store.root / ".hearth-quantising"


def blobs(shelf: Shelf) -> set[str]:
    return {digest for _, digest in shelf.store.blobs.files() if digest}


async def lines(shelf: Shelf, **fields: object) -> list[CreateStatus]:
    request = CreateRequest(**fields)  # pyright: ignore[reportArgumentType]
    return [line async for line in shelf.creator.create(request)]


async def test_a_model_gets_a_smaller_copy(shelf: Shelf) -> None:
    await shelf.make(
        "large", floats(notes=["some rows"]), system="be kind", template="{{ .Prompt }}"
    )
    made = await lines(shelf, model="small", source="large", quantize="q4_k")
    steps = [line for line in made if line.status == "quantizing F16 model to Q4_K_M"]
    assert all(line.digest == "0" * 19 for line in steps)
    assert (steps[-1].completed, steps[-1].total) == (3, 3)
    order = list(dict.fromkeys(line.status for line in made))
    assert order.index("note: some rows") < order.index("verifying conversion")
    assert order.index("verifying conversion") < order.index("converting to onnx-cpu")
    assert order[-2:] == ["writing manifest", "success"]
    large = shelf.store.resolve(parse_name("large"))
    small = shelf.store.resolve(parse_name("small"))
    assert (large.config.file_type, small.config.file_type) == ("F16", "Q4_K_M")
    assert large.require_weights().digest == hex_of(floats(notes=["some rows"]))
    assert small.require_weights().path.read_bytes() == gguf(types="Q4_K", file_type="Q4_K_M")
    assert (small.system, small.template) == ("be kind", "{{ .Prompt }}")
    assert small.parent_model == "large:latest"
    assert shelf.conversions.artifact(small.model_digest, TARGET) is not None
    assert not folder(shelf).exists() or list(folder(shelf).iterdir()) == []


async def test_an_uploaded_file_is_not_converted_as_it_is(shelf: Shelf) -> None:
    await shelf.make("m", floats(), quantization="Q8_0")
    model = shelf.store.resolve(parse_name("m"))
    assert [source for source, _ in shelf.runs()] == [model.model_digest]
    assert model.config.file_type == "Q8_0"


async def test_the_type_that_it_has_already_changes_nothing(shelf: Shelf) -> None:
    await shelf.make("m", floats())
    assert "quantizing" not in " ".join(await shelf.create(model="c", source="m", quantize="f16"))
    same = {shelf.store.resolve(parse_name(name)).model_digest for name in ("m", "c")}
    assert same == {hex_of(floats())}


@pytest.mark.parametrize(
    ("data", "quantize", "error", "text"),
    [
        (gguf(), "Q8_0", Internal, NOT_FLOATS),
        (floats(), "Q3_K_M", Internal, "unsupported quantization type Q3_K_M - supported types are"),
        (floats(refused=True), "Q8_0", NotYet, "no recipe"),
        (floats(fail="malformed", fails_at="quantise"), "Q8_0", DaemonError, "says malformed"),
        (floats(fail="space", fails_at="quantise"), "Q8_0", DaemonError, "says space"),
        (floats(then="die"), "Q8_0", LoadFailed, "SIGKILL"),
        (floats(then_made={"then": "die"}), "Q8_0", LoadFailed, "SIGKILL"),
        (floats(then_made={"fail": "malformed", "fails_at": "inspect"}), "Q8_0", DaemonError, "malf"),
    ],
)  # fmt: skip
async def test_what_fails_leaves_nothing(
    shelf: Shelf, data: bytes, quantize: str, error: type[DaemonError], text: str
) -> None:
    with pytest.raises(error, match=text):
        await shelf.make("m", data, quantize=quantize)
    assert shelf.store.names() == []
    assert blobs(shelf) == {hex_of(data)}
    assert shelf.staging() == []
    assert not folder(shelf).exists() or list(folder(shelf).iterdir()) == []


@pytest.mark.parametrize("last", ["quantizing F16 model to Q8_0", "verifying", "converting"])
async def test_a_client_that_leaves_stops_it(shelf: Shelf, last: str) -> None:
    data = floats(seconds=0.2, then_made={"seconds": 0.2})
    files = {"a.gguf": f"sha256:{await shelf.put(data)}"}
    request = CreateRequest(model="m", files=files, quantize="Q8_0")
    async with contextlib.aclosing(shelf.creator.create(request)) as statuses:
        async for line in statuses:
            if line.status.startswith(last) and (line.completed or last != "quantizing"):
                break
    assert shelf.store.names() == []
    assert blobs(shelf) == {hex_of(data)}
    assert list(folder(shelf).glob("*/*")) == [] and shelf.staging() == []
    assert shelf.conversions.jobs() == []


async def test_it_waits_for_its_turn_and_is_seen(shelf: Shelf) -> None:
    first = asyncio.create_task(shelf.make("first", gguf(steps=20, seconds=0.05)))
    await until(shelf.runs)
    second = asyncio.create_task(shelf.make("second", floats(), quantize="Q4_0"))
    await until(lambda: len(shelf.conversions.jobs()) == 2)
    assert [job.variant for job in shelf.conversions.jobs()][1] == "Q4_0"
    statuses = await second
    assert "waiting for another conversion" in statuses
    await first


async def test_what_a_killed_daemon_left_is_swept(shelf: Shelf) -> None:
    dead, done, fresh = (folder(shelf) / name for name in ("dead", "done", "fresh"))
    (dead / "Q8_0.staging-999999999").mkdir(parents=True)
    for path in (done, fresh):
        (path / "Q8_0").mkdir(parents=True)
    os.utime(done, (1, 1))
    await sweep_quantising(shelf.store)
    assert [path.name for path in folder(shelf).iterdir()] == ["fresh"]


@pytest.mark.parametrize(
    ("asked", "meant"), [("", ""), ("q4_K", "Q4_K_M"), ("bf16", "BF16"), ("Q6_K", "Q6_K")]
)
def test_types_are_told_apart_without_case(asked: str, meant: str) -> None:
    assert checked_type(asked) == meant


@pytest.mark.parametrize(
    ("types", "level"),
    [
        ({"F32": 4, "F16": 400}, "F16"),
        ({"F32": 4, "BF16": 400, "I32": 9000}, "BF16"),
        ({"F32": 4}, "F32"),
        ({"F32": 4, "F16": 400, "Q8_0": 1}, None),
        ({"F32": 4, "MXFP4": 400}, None),
        ({}, None),
    ],
)
def test_the_level_is_what_most_weights_have(types: dict[str, int], level: str | None) -> None:
    tensors = tuple(TensorSummary(name, name, (2, count)) for name, count in types.items())
    inspection = Inspection(digest="0" * 64, size=1, tensors=tensors)
    if level is not None:
        assert float_type(inspection) == level
        return
    with pytest.raises(Internal, match=NOT_FLOATS):
        float_type(inspection)


async def test_a_folder_of_safetensors_is_quantised_and_its_dense_file_is_gone(
    tmp_path: pathlib.Path,
) -> None:
    folder = make_folder(tmp_path / "hf", "llama", dtype="BF16")
    shelf = Shelf(tmp_path, CONVERTER_COMMAND)
    files = {
        name: f"sha256:{await shelf.put(path.read_bytes())}"
        for name, path in folder_files(folder).items()
    }
    made = await shelf.create(model="m", files=files, quantize="Q8_0")
    assert "quantizing BF16 model to Q8_0" in made and made[-1] == "success"
    model = shelf.store.resolve(parse_name("m"))
    assert model.config.file_type == "Q8_0"
    ggufs = [path for path, _ in shelf.store.blobs.files() if path.read_bytes()[:4] == b"GGUF"]
    assert ggufs == [model.require_weights().path]
    await shelf.conversions.close()
