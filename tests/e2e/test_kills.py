"""The plug pulled at each stage: what clients saw, what is left, and that the next request works."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import signal
import threading
import time
from collections.abc import Mapping

import httpx
import pytest

from tests.e2e.daemon_process import DaemonProcess, running

LONG = {"temperature": 0, "num_predict": 1500, "num_ctx": 2048}


def stream_lines(url: str, body: Mapping[str, object]) -> list[dict[str, object]]:
    with httpx.stream("POST", url, json=body, timeout=60, trust_env=False) as answer:
        return [json.loads(line) for line in answer.iter_lines()]


def upload(daemon: DaemonProcess, path: pathlib.Path) -> str:
    data = path.read_bytes()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    answer = httpx.post(f"{daemon.url}/api/blobs/{digest}", content=data, trust_env=False)
    assert answer.status_code in (200, 201), answer.text
    return digest


def create(daemon: DaemonProcess, name: str, path: pathlib.Path) -> list[dict[str, object]]:
    body: Mapping[str, object] = {"model": name, "files": {path.name: upload(daemon, path)}}
    return stream_lines(f"{daemon.url}/api/create", body)


def names(daemon: DaemonProcess) -> set[str]:
    models = httpx.get(f"{daemon.url}/api/tags", trust_env=False).json()["models"]
    return {model["name"] for model in models}


def leftovers(home: pathlib.Path) -> list[pathlib.Path]:
    return [p for p in home.rglob("*") if ".staging-" in p.name or p.name.endswith(".tmp")]


def test_a_killed_worker_is_an_error_line_and_the_next_request_works(
    tmp_path: pathlib.Path, small_gguf: pathlib.Path
) -> None:
    with running(tmp_path / "home") as daemon:
        create(daemon, "small", small_gguf)
        body = {"model": "small", "prompt": "x", "raw": True, "options": LONG}
        with httpx.stream(
            "POST", f"{daemon.url}/api/generate", json=body, timeout=60, trust_env=False
        ) as answer:
            lines = answer.iter_lines()
            assert "response" in json.loads(next(lines))
            os.kill(daemon.child_running("backends.worker").pid, signal.SIGKILL)
            rest = [json.loads(line) for line in lines]
        assert "model runner has unexpectedly stopped" in rest[-1]["error"]
        assert not any(line.get("done") for line in rest)
        again = stream_lines(f"{daemon.url}/api/generate", body | {"options": {"num_predict": 2}})
        assert again[-1]["done_reason"] == "length"


def test_a_killed_converter_leaves_nothing_and_create_works_again(
    tmp_path: pathlib.Path, larger_gguf: pathlib.Path
) -> None:
    with running(tmp_path / "home") as daemon:
        digest = upload(daemon, larger_gguf)
        killer = threading.Thread(target=kill_converter_while_it_writes, args=(daemon,))
        killer.start()
        body: Mapping[str, object] = {"model": "larger", "files": {larger_gguf.name: digest}}
        lines = stream_lines(f"{daemon.url}/api/create", body)
        killer.join()
        assert "error" in lines[-1]
        assert "larger:latest" not in names(daemon)
        assert leftovers(daemon.home) == []
        assert create(daemon, "larger", larger_gguf)[-1] == {"status": "success"}
        assert "larger:latest" in names(daemon)


def kill_converter_while_it_writes(daemon: DaemonProcess) -> None:
    child = daemon.child_running("converters convert")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        written = [
            p.stat().st_size for p in daemon.home.rglob("weights.bin*") if ".staging-" in str(p)
        ]
        if any(size > 1 << 20 for size in written):
            os.kill(child.pid, signal.SIGKILL)
            return
        time.sleep(0.002)
    raise AssertionError("the converter never wrote")


def test_a_daemon_killed_during_create_leaves_a_whole_store(
    tmp_path: pathlib.Path, larger_gguf: pathlib.Path
) -> None:
    home = tmp_path / "home"
    with running(home) as daemon:
        digest = upload(daemon, larger_gguf)
        body: Mapping[str, object] = {"model": "larger", "files": {larger_gguf.name: digest}}

        def ask() -> None:
            with contextlib.suppress(httpx.TransportError):
                stream_lines(f"{daemon.url}/api/create", body)

        client = threading.Thread(target=ask)
        client.start()
        daemon.child_running("converters convert")
        daemon.kill()
        client.join()
    with running(home) as daemon:
        assert names(daemon) == {"ember:latest"}
        assert leftovers(home) == []
        assert stream_lines(f"{daemon.url}/api/create", body)[-1] == {"status": "success"}
        for manifest in (home / "models" / "manifests").rglob("latest"):
            for layer in json.loads(manifest.read_bytes())["layers"]:
                name = layer["digest"].replace(":", "-")
                assert (home / "models" / "blobs" / name).stat().st_size == layer["size"]


def test_a_client_that_leaves_frees_its_row(
    daemon: DaemonProcess, small_gguf: pathlib.Path
) -> None:
    create(daemon, "rows", small_gguf)
    body = {"model": "rows", "prompt": "x", "raw": True, "options": LONG}
    for _ in range(8):
        with httpx.stream(
            "POST", f"{daemon.url}/api/generate", json=body, timeout=60, trust_env=False
        ) as answer:
            next(answer.iter_lines())
    start = time.monotonic()
    lines = stream_lines(f"{daemon.url}/api/generate", body | {"options": {"num_predict": 2}})
    assert lines[-1]["done"]
    assert time.monotonic() - start < 10


def test_two_clients_interleave(daemon: DaemonProcess, small_gguf: pathlib.Path) -> None:
    """The readers are threads of a busy machine, which may see late what came side by side."""
    create(daemon, "pair", small_gguf)
    for is_last in (False, False, False, False, True):
        first, second = _read_together(daemon, "pair")
        if max(first[0], second[0]) < min(first[-1], second[-1]):
            return
        assert not is_last, (first, second)


def _read_together(daemon: DaemonProcess, model: str) -> list[list[float]]:
    """When each line of two answers was read."""
    body = {"model": model, "prompt": "x", "raw": True, "options": LONG}
    moments: dict[int, list[float]] = {0: [], 1: []}

    def ask(which: int) -> None:
        with httpx.stream(
            "POST", f"{daemon.url}/api/generate", json=body, timeout=60, trust_env=False
        ) as answer:
            moments[which] = [time.monotonic() for _ in answer.iter_lines()]

    threads = [threading.Thread(target=ask, args=(which,)) for which in moments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return list(moments.values())


@pytest.mark.parametrize("host", ["evil.example", "169.254.1.1.nip.example"])
def test_a_strange_host_is_refused(daemon: DaemonProcess, host: str) -> None:
    answer = httpx.get(f"{daemon.url}/api/tags", headers={"Host": host}, trust_env=False)
    assert (answer.status_code, answer.content) == (403, b"")
