"""One conversion as a folder sees it: whole or absent, in its place, with what the artifact says."""

from __future__ import annotations

import hashlib
import itertools
import pathlib
import shutil
import time

import msgspec
import numpy as np
import pytest

from converters import output_file, staging
from converters.artifact import ARTIFACT_FILE, WEIGHTS_FILE, read_artifact, variant_folder
from converters.convert import Request, convert
from converters.errors import ConversionError, MalformedFile, NoSpace, Unsupported
from converters.gguf import read_header
from converters.plan import plan
from converters.progress import Progress
from tests.models.random_gguf import make_gguf
from tests.parity.converted import SilentProgress, converted

SOURCE = "ab" * 32


def request(folder: pathlib.Path, *, precise: bool = False) -> Request:
    final = folder / variant_folder("onnx-cpu", precise=precise)
    return Request(source=SOURCE, target="onnx-cpu", final=final, precise=precise)


def digests(folder: pathlib.Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


class StopAt(Progress):
    """Raises at the given report, as a signal would."""

    def __init__(self, report: int, error: BaseException) -> None:
        super().__init__()
        self._left = report
        self._error = error

    def start(self, phase: str, total: int = 0) -> None:
        self.advance(0)

    def advance(self, count: int) -> None:
        self._left -= 1
        if self._left < 0:
            raise self._error


@pytest.fixture
def model(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "artifacts").mkdir()
    return make_gguf(tmp_path / "model.gguf", types="Q4_K_M")


def test_the_artifact_says_what_is_there(model: pathlib.Path, tmp_path: pathlib.Path):
    wanted, progress = request(tmp_path / "artifacts"), SilentProgress()
    with model.open("rb") as file:
        artifact_bytes = convert(file, wanted, progress)
    artifact = read_artifact(wanted.final)
    sizes = {path.name: path.stat().st_size for path in wanted.final.iterdir()}
    assert progress.phases == ["plan", "write", "verify", "sync"]
    assert artifact_bytes == artifact.file_bytes == sum(sizes.values())
    assert (artifact.source, artifact.variant) == (SOURCE, wanted.final.name)
    assert (artifact.heads, artifact.kv_heads, artifact.head_size) == (4, (2,), 64)
    assert artifact.vocabulary == 700
    assert {record.name for record in artifact.tensors} == {
        tensor.name for tensor in read_header(model).tensors
    }
    estimate = plan(read_header(model), "onnx-cpu")
    assert sizes[WEIGHTS_FILE] == estimate.layout.weights_bytes
    assert estimate.artifact_bytes >= artifact_bytes


def test_rope_factors_come_from_their_tensor(tmp_path: pathlib.Path):
    other = tmp_path / "other"
    other.mkdir()
    plain = read_artifact(converted(tmp_path, architecture="llama", types="F32"))
    factored = read_artifact(converted(other, architecture="llama3", types="F32"))
    ratio = np.array(factored.rope["global"].inverse_frequencies[:1]) / np.array(
        plain.rope["global"].inverse_frequencies[:1]
    )
    assert ratio == 1.0
    last = factored.rope["global"].inverse_frequencies[-1]
    assert last == pytest.approx(500000.0 ** (-62 / 64) / 8)


def test_the_same_file_gives_the_same_bytes(model: pathlib.Path, tmp_path: pathlib.Path):
    wanted = request(tmp_path / "artifacts")
    found = []
    for _ in range(2):
        with model.open("rb") as file:
            convert(file, wanted, SilentProgress())
        found.append(digests(wanted.final))
        shutil.rmtree(wanted.final)
    assert found[0] == found[1]


def test_an_artifact_that_is_there_is_left_as_it_is(model: pathlib.Path, tmp_path: pathlib.Path):
    wanted = request(tmp_path / "artifacts")
    with model.open("rb") as file:
        first = convert(file, wanted, SilentProgress())
        before = digests(wanted.final)
        assert convert(file, wanted, StopAt(0, AssertionError())) == first
    assert digests(wanted.final) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(5, "broken disk")])
def test_nothing_stays_wherever_it_is_stopped(
    model: pathlib.Path, tmp_path: pathlib.Path, error: BaseException
):
    stops = 0
    for report in itertools.count():
        with model.open("rb") as file:
            try:
                convert(file, request(tmp_path / "artifacts"), StopAt(report, error))
            except type(error):
                stops += 1
                assert list((tmp_path / "artifacts").iterdir()) == []
            else:
                break
    assert stops > 20


def test_too_little_space_is_said_before_a_byte_is_written(
    model: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage)
    with model.open("rb") as file, pytest.raises(NoSpace, match="1000 are free"):
        convert(file, request(tmp_path / "artifacts"), SilentProgress())
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_a_disk_that_fills_up_is_no_space(model: pathlib.Path, tmp_path: pathlib.Path):
    full = OSError(28, "No space left on device")
    with model.open("rb") as file, pytest.raises(NoSpace, match="filled up"):
        convert(file, request(tmp_path / "artifacts"), StopAt(6, full))
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_a_faster_conversion_of_the_same_wins(tmp_path: pathlib.Path):
    final = tmp_path / "artifact"
    with staging.staged(final) as folder:
        (folder / "mine").write_text("x")
        final.mkdir()
        (final / "theirs").write_text("x")
        staging.publish(folder, final)
    assert [path.name for path in final.iterdir()] == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_a_file_that_shrank_after_its_header_is_malformed(
    model: pathlib.Path, tmp_path: pathlib.Path
):
    class Shrink(SilentProgress):
        def start(self, phase: str, total: int = 0) -> None:
            if phase == "write":
                with model.open("r+b") as file:
                    file.truncate(model.stat().st_size - 4096)

    with model.open("rb") as file, pytest.raises(MalformedFile, match="ends inside"):
        convert(file, request(tmp_path / "artifacts"), Shrink())
    assert list((tmp_path / "artifacts").iterdir()) == []


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_K", "Q6_K", "F16"])
def test_numbers_that_are_not_finite_are_malformed(tmp_path: pathlib.Path, type_name: str):
    """Every 16-bit word of one matrix becomes NaN, its scales among them."""
    path = make_gguf(tmp_path / "model.gguf", types=type_name)
    tensor = next(t for t in read_header(path).tensors if t.name == "blk.1.ffn_up.weight")
    with path.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(b"\xff\x7f" * (tensor.nbytes // 2))
    (tmp_path / "artifacts").mkdir()
    with path.open("rb") as file, pytest.raises(MalformedFile, match=r"blk\.1\.ffn_up.*not finite"):
        convert(file, request(tmp_path / "artifacts"), SilentProgress())


def test_unknown_architectures_leave_no_trace(tmp_path: pathlib.Path):
    path = make_gguf(tmp_path / "model.gguf", types="F32")
    data = path.read_bytes().replace(b"llama", b"xlama")
    path.write_bytes(data)
    (tmp_path / "artifacts").mkdir()
    with path.open("rb") as file, pytest.raises(Unsupported):
        convert(file, request(tmp_path / "artifacts"), SilentProgress())
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_every_failure_of_the_file_is_a_conversion_error():
    assert all(issubclass(kind, ConversionError) for kind in (MalformedFile, Unsupported, NoSpace))


def test_the_description_is_json_that_decodes_again(model: pathlib.Path, tmp_path: pathlib.Path):
    wanted = request(tmp_path / "artifacts", precise=True)
    with model.open("rb") as file:
        convert(file, wanted, SilentProgress())
    raw = msgspec.json.decode((wanted.final / ARTIFACT_FILE).read_bytes())
    assert raw["precise"] is True
    assert raw["variant"] == "onnx-cpu-precise-f1"


def test_a_disk_that_fails_behind_our_back_is_an_error(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells it to whoever syncs first, and only once."""

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(output_file, "_SYNC_SECONDS", 0.001)
    with pytest.raises(OSError, match="Input/output"), output_file.new_file(tmp_path / "a") as file:
        monkeypatch.setattr(output_file.os, "fsync", fail)
        time.sleep(0.1)
        file.put(b"12", 0)
