"""The command line as the daemon uses it: JSON lines, exit codes, a signal in the middle."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import psutil
import pytest

from converters.__main__ import LEAST_SHARED_BYTES, MOST_WRITERS
from converters.artifact import read_artifact
from converters.parallel import worker_count
from converters.vision_artifact import read_vision
from tests.models.random_gguf import make_gguf
from tests.models.random_vision import make_projector

ROOT = pathlib.Path(__file__).parents[2]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "converters", *map(str, arguments)]


def convert_command(source: pathlib.Path, final: pathlib.Path, *more: str) -> list[str]:
    target = ("--target", "onnx-cpu", "--source", "0f" * 32)
    return command("convert", "--input", source, "--output", final, *target, *more)


def run(line: list[str]) -> tuple[int, list[dict[str, Any]]]:
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, [json.loads(each) for each in done.stdout.splitlines()]


@pytest.fixture
def model(tmp_path: pathlib.Path) -> pathlib.Path:
    return make_gguf(tmp_path / "model.gguf", types="Q4_K_M")


def test_a_conversion_reports_its_phases_and_its_bytes(model: pathlib.Path, tmp_path: pathlib.Path):
    final = tmp_path / "artifacts" / "source" / "onnx-cpu-f1"
    code, lines = run(convert_command(model, final))
    assert code == 0
    phases = [line["phase"] for line in lines[:-1]]
    assert list(dict.fromkeys(phases)) == ["plan", "write", "verify", "sync"]
    written = [line["done"] for line in lines if line.get("phase") == "write"]
    assert written == sorted(written)
    assert written[-1] == max(line["total"] for line in lines if line.get("phase") == "write")
    artifact = read_artifact(final)
    assert lines[-1] == {"done": True, "artifact_bytes": artifact.file_bytes}
    assert run(convert_command(model, final)) == (0, lines[-1:])


def test_a_vision_tower_is_converted_like_a_model(tmp_path: pathlib.Path):
    projector = make_projector(tmp_path / "mmproj.gguf", "mlp", types="F16")
    final = tmp_path / "artifacts" / "source" / "vision-onnx-cpu-f1"
    line = command("vision", "--input", projector, "--output", final)
    line += ["--target", "onnx-cpu", "--source", "0f" * 32]
    code, lines = run(line)
    assert code == 0
    phases = [each["phase"] for each in lines[:-1]]
    assert list(dict.fromkeys(phases)) == ["plan", "write", "verify", "sync"]
    artifact = read_vision(final)
    assert lines[-1] == {"done": True, "artifact_bytes": artifact.file_bytes}
    assert artifact.source == "0f" * 32 and artifact.variant == final.name
    assert run(line) == (0, lines[-1:])
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(
        projector.read_bytes().replace(b"\x03\0\0\0\0\0\0\0mlp", b"\x03\0\0\0\0\0\0\0xyz")
    )
    line[line.index(str(projector))] = str(renamed)
    line[line.index(str(final))] = str(final.with_name("other"))
    code, lines = run(line)
    refusal = "the projector type 'xyz' is not supported yet"
    assert code == 3 and lines[-1] == {"error": refusal, "kind": "unsupported"}
    assert [each.name for each in final.parent.iterdir()] == [final.name]


def test_what_is_wrong_is_told_by_kind(model: pathlib.Path, tmp_path: pathlib.Path):
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(
        model.read_bytes().replace(b"llama.", b"xlama.").replace(b"llama", b"xlama")
    )
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[:-5000])
    final = tmp_path / "artifacts" / "onnx-cpu-f1"
    for path, expected in ((renamed, (3, "unsupported")), (cut, (2, "malformed"))):
        code, lines = run(convert_command(path, final))
        assert (code, lines[-1]["kind"]) == expected
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_a_missing_file_is_internal(tmp_path: pathlib.Path):
    code, lines = run(convert_command(tmp_path / "none.gguf", tmp_path / "artifact"))
    assert (code, lines[-1]["kind"]) == (1, "internal")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_takes_everything_back(tmp_path: pathlib.Path, number: signal.Signals):
    model = make_gguf(tmp_path / "large.gguf", types="Q4_K", embedding=1024, vocabulary=32000)
    final = tmp_path / "artifacts" / "onnx-cpu-f1"
    with subprocess.Popen(
        convert_command(model, final, "--precise"), cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if json.loads(line).get("phase") == "write":
                child.send_signal(number)
                break
        rest = child.stdout.read().splitlines()
    assert child.returncode == 143
    assert json.loads(rest[-1])["kind"] == "cancelled"
    assert list(final.parent.iterdir()) == []


def test_a_parent_that_dies_takes_everything_back(tmp_path: pathlib.Path):
    model = make_gguf(tmp_path / "large.gguf", types="Q4_K", embedding=1024, vocabulary=32000)
    final = tmp_path / "artifacts" / "onnx-cpu-f1"
    line = convert_command(model, final, "--precise", "--watch-stdin")
    with subprocess.Popen(line, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        for text in child.stdout:
            if json.loads(text).get("phase") == "write":
                child.stdin.close()
                break
        rest = child.stdout.read().splitlines()
    assert child.returncode == 143
    assert json.loads(rest[-1])["kind"] == "cancelled"
    assert list(final.parent.iterdir()) == []


def test_a_reader_that_goes_away_takes_everything_back(tmp_path: pathlib.Path):
    model = make_gguf(tmp_path / "large.gguf", types="Q4_K", embedding=1024, vocabulary=32000)
    final = tmp_path / "artifacts" / "onnx-cpu-f1"
    with subprocess.Popen(convert_command(model, final), cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.stdout.close()
        child.wait()
    assert child.returncode == 143
    assert list(final.parent.iterdir()) == []


def test_an_inspection_is_written(model: pathlib.Path, tmp_path: pathlib.Path):
    output = tmp_path / "inspections"
    code, lines = run(
        command("inspect", "--input", model, "--digest", "ab" * 32, "--output", output)
    )
    assert (code, lines) == (0, [{"done": True}])
    found = json.loads((output / f"{'ab' * 32}.json").read_bytes())
    assert found["estimates"]["onnx"] > 0 and found["estimates"]["mlx"] > 0
    assert "refusals" not in found


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Enough for several processes to share."""
    folder = tmp_path_factory.mktemp("large")
    path = make_gguf(folder / "large.gguf", types="Q4_K", embedding=1024, vocabulary=32000)
    assert path.stat().st_size > LEAST_SHARED_BYTES
    return path


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux's call")
@pytest.mark.parametrize("target", ["onnx-cpu", "mlx"])
def test_several_processes_write_what_one_writes(
    large: pathlib.Path, tmp_path: pathlib.Path, target: str
) -> None:
    line = command("convert", "--input", large, "--target", target, "--source", "0f" * 32)
    alone = ["-c", "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"]
    alone[1] += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    for name, before in (("one", [sys.executable, *alone]), ("several", [sys.executable])):
        output = ["--output", str(tmp_path / name / "artifact")]
        code, lines = run([*before, *line[1:], *output])
        assert (code, lines[-1].get("error")) == (0, None)
    one, several = (files_of(tmp_path / name / "artifact") for name in ("one", "several"))
    assert one.keys() == several.keys()
    assert [name for name in one if one[name] != several[name]] == []


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's list of processes")
def test_no_process_outlives_a_killed_converter(large: pathlib.Path, tmp_path: pathlib.Path):
    line = convert_command(large, tmp_path / "artifacts" / "onnx-cpu-f1", "--precise")
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        next(text for text in child.stdout if json.loads(text).get("phase") == "write")
        workers = psutil.Process(child.pid).children(recursive=True)
        child.kill()
    assert len(workers) == worker_count(MOST_WRITERS)
    assert psutil.wait_procs(workers, timeout=20)[1] == []


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's list of threads")
def test_no_thread_escapes_the_confinement() -> None:
    """What is imported before it starts none; the command line sets the variable."""
    code = "import converters.convert, os; print(len(os.listdir('/proc/self/task')))"
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, check=True)
    assert done.stdout.strip() == b"1"
