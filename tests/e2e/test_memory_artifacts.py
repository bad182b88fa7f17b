"""A disk with no room for the artifact: kept, said so, converted into memory at the load, or refused.

The disk is a tmpfs of its own that is too small for any artifact, so these need root.
"""

from __future__ import annotations

import contextlib
import pathlib
import stat
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.bench.interruptions import small_disk
from tests.e2e.daemon_process import DaemonProcess, running
from tests.e2e.test_kills import create, names

DISK_BYTES = 8 << 20  # the converter leaves 64 MiB of every disk alone


@pytest.fixture
def artifacts(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    folder = tmp_path / "artifacts"
    folder.mkdir()
    with small_disk(folder, DISK_BYTES) as is_small:
        if not is_small:
            pytest.skip("a tmpfs cannot be mounted here")
        yield folder


@pytest.fixture
def memory(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "memory"
    folder.mkdir()
    return folder


def generate(daemon: DaemonProcess, **more: object) -> httpx.Response:
    body = {"model": "small", "prompt": "x", "raw": True, "stream": False} | more
    body |= {"options": {"num_predict": 3, "num_ctx": 256}}
    return httpx.post(f"{daemon.url}/api/generate", json=body, timeout=60, trust_env=False)


def files_in(folder: pathlib.Path) -> dict[str, int]:
    """Name and size of each; those that go away meanwhile are not among them."""
    found: dict[str, int] = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                found[path.name] = status.st_size
    return found


def until_empty(folder: pathlib.Path) -> None:
    deadline = time.monotonic() + 10
    while files_in(folder):
        assert time.monotonic() < deadline, files_in(folder)
        time.sleep(0.02)


def test_it_is_converted_into_memory_for_as_long_as_its_worker_lives(
    tmp_path: pathlib.Path,
    artifacts: pathlib.Path,
    memory: pathlib.Path,
    small_gguf: pathlib.Path,
) -> None:
    settings = {"HEARTH_ARTIFACTS": str(artifacts), "HEARTH_MEMORY_ARTIFACTS": str(memory)}
    with running(tmp_path / "home", **settings) as daemon:
        lines = create(daemon, "small", small_gguf)
        kept = [str(line.get("status")) for line in lines if "unconverted" in str(line)]
        assert len(kept) == 1
        assert "does not fit: the artifact needs" in kept[0]
        assert lines[-1] == {"status": "success"}
        assert "small:latest" in names(daemon)
        assert not files_in(memory)
        answer = generate(daemon)
        assert answer.json()["eval_count"] == 3
        held = files_in(memory)
        assert {"artifact.json", "weights.bin", "model.onnx"} <= held.keys()
        assert not list(artifacts.rglob("artifact.json"))
        (shown,) = httpx.get(f"{daemon.url}/api/ps", trust_env=False).json()["models"]
        assert shown["size"] > sum(held.values())
        assert generate(daemon, keep_alive=0).json()["eval_count"] == 3
        until_empty(memory)
        generate(daemon)
        daemon.kill()
        assert files_in(memory)
        daemon.start()
        assert not files_in(memory)
    assert not list(memory.iterdir())


def test_without_room_in_memory_the_error_states_both_sizes(
    tmp_path: pathlib.Path, artifacts: pathlib.Path, small_gguf: pathlib.Path
) -> None:
    # The disk that is too small is also all the memory there is.
    settings = {"HEARTH_ARTIFACTS": str(artifacts), "HEARTH_MEMORY_ARTIFACTS": str(artifacts)}
    with running(tmp_path / "home", **settings) as daemon:
        create(daemon, "small", small_gguf)
        answer = generate(daemon)
    assert answer.status_code == 500
    text = answer.json()["error"]
    assert "model 'small:latest' could not be loaded" in text
    disk, _, memory = text.partition("nor in memory")
    assert "spare ones" in disk and "are free" in disk
    assert "bytes needed" in memory and "bytes free" in memory and "loading it takes" in memory
    assert str(artifacts) not in text
