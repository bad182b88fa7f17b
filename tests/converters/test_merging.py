"""Split models become the one file that they were, or are refused by what they lack."""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import sys

import pytest

from converters.artifact import MADE_GGUF
from converters.errors import MalformedFile
from converters.gguf import read_header
from converters.made_gguf import Made
from converters.merging import merge
from tests.models.random_gguf import make_gguf
from tests.models.split_gguf import split
from tests.parity.converted import SilentProgress


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return make_gguf(tmp_path_factory.mktemp("whole") / "model.gguf", types="Q4_K")


def merged(paths: list[pathlib.Path], final: pathlib.Path) -> Made:
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("rb")) for path in paths]
        return merge(files, final, SilentProgress())


def tensors(path: pathlib.Path) -> dict[str, tuple[tuple[int, ...], str, bytes]]:
    data = path.read_bytes()
    with path.open("rb") as file:
        found = read_header(file).tensors
    return {
        each.name: (each.shape, each.type_name, data[each.offset : each.offset + each.nbytes])
        for each in found
    }


@pytest.mark.parametrize("count", [1, 3])
def test_the_parts_in_any_order_are_the_file_again(
    whole: pathlib.Path, tmp_path: pathlib.Path, count: int
):
    made = merged(split(whole, count)[::-1], tmp_path / "merged")
    path = tmp_path / "merged" / MADE_GGUF
    assert tensors(path) == tensors(whole)
    assert path.stat().st_size == made.file_bytes
    with path.open("rb") as file, whole.open("rb") as other:
        found, expected = read_header(file).metadata, read_header(other).metadata
    assert found.keys() == expected.keys()
    assert found["general.name"] == expected["general.name"]


def test_the_command_line_says_digest_and_size(whole: pathlib.Path, tmp_path: pathlib.Path):
    """Confined as it is in service."""
    first, *others = split(whole, 3)
    final = tmp_path / "merged"
    command = [sys.executable, "-m", "converters", "merge", "--input", str(first)]
    command += ["--output", str(final)]
    for path in others:
        command += ["--part", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    made = merged([first, *others], tmp_path / "again")
    assert last == {"done": True, "digest": made.digest, "file_bytes": made.file_bytes}


def test_what_is_not_one_model_is_refused(whole: pathlib.Path, tmp_path: pathlib.Path):
    parts = split(whole, 3)
    for paths in (parts[:2], [parts[0], *parts[:2]], [parts[0], parts[1], split(whole, 2)[1]]):
        with pytest.raises(MalformedFile, match="are not one model"):
            merged(paths, tmp_path / "merged")
    with pytest.raises(MalformedFile, match=r"lacks the metadata key split\.no"):
        merged([whole], tmp_path / "merged")
    assert not list(tmp_path.iterdir())
