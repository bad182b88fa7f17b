"""`python -m converters import` as the daemon runs it: JSON lines, exit codes, a signal in the middle."""

from __future__ import annotations

import hashlib
import json
import pathlib
import signal
import subprocess

import pytest

from converters.artifact import MADE_GGUF
from tests.converters.test_main import ROOT, command, run
from tests.models.hugging_face import make_folder


def test_a_folder_becomes_a_gguf(tmp_path: pathlib.Path) -> None:
    folder = make_folder(tmp_path / "hf", "phi3", shards=2)
    final = tmp_path / "made" / "gguf"
    code, lines = run(command("import", "--input", folder, "--name", "mine", "--output", final))
    assert code == 0
    assert list(dict.fromkeys(line["phase"] for line in lines[:-1])) == [
        "plan",
        "write",
        "verify",
        "sync",
    ]
    data = (final / MADE_GGUF).read_bytes()
    assert lines[-1]["digest"] == hashlib.sha256(data).hexdigest()
    assert lines[-1]["file_bytes"] == len(data)
    assert "sliding window" in lines[-1]["notes"][0]


def test_uploaded_files_are_given_one_by_one(tmp_path: pathlib.Path) -> None:
    folder = make_folder(tmp_path / "hf", "bert-sentences")
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    listed: list[object] = []
    for number, path in enumerate(sorted(folder.rglob("*.*"))):
        blob = path.rename(blobs / f"sha256-{number}")
        listed += ["--file", path.relative_to(folder), blob]
    code, lines = run(command("import", *listed, "--output", tmp_path / "made" / "gguf"))
    assert (code, lines[-1]["done"]) == (0, True)


def test_a_refusal_has_its_kind_and_leaves_nothing(tmp_path: pathlib.Path) -> None:
    folder = make_folder(tmp_path / "hf", "llama", hidden_act="relu")
    code, lines = run(command("import", "--input", folder, "--output", tmp_path / "made" / "gguf"))
    assert (code, lines[-1]["kind"]) == (3, "unsupported")
    (folder / "model.safetensors").write_bytes(b"x")
    code, lines = run(command("import", "--input", folder, "--output", tmp_path / "made" / "gguf"))
    assert (code, lines[-1]["kind"]) == (2, "malformed")
    assert list((tmp_path / "made").iterdir()) == []


@pytest.mark.parametrize("how", ["signal", "parent"])
def test_cancelling_takes_everything_back(tmp_path: pathlib.Path, how: str) -> None:
    folder = make_folder(tmp_path / "hf", "llama", hidden_size=1024, intermediate_size=8192)
    final = tmp_path / "made" / "gguf"
    line = command("import", "--input", folder, "--output", final, "--watch-stdin")
    with subprocess.Popen(line, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        for text in child.stdout:
            if json.loads(text).get("phase") == "write":
                if how == "signal":
                    child.send_signal(signal.SIGTERM)
                else:
                    child.stdin.close()
                break
        rest = child.stdout.read().splitlines()
    assert child.returncode == 143
    assert json.loads(rest[-1])["kind"] == "cancelled"
    assert list(final.parent.iterdir()) == []
