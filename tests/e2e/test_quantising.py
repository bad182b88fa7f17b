"""A model made smaller through the API and the command line, then used; the plug pulled meanwhile."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading

import httpx
import pytest

from tests.converters.quantise.reference_mixes import write_zeros
from tests.converters.random_headers import random_header
from tests.e2e.daemon_process import ROOT, DaemonProcess, running
from tests.e2e.test_kills import create, leftovers, names, stream_lines, upload
from tests.models.random_gguf import make_gguf


@pytest.fixture(scope="module")
def half_precision(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return make_gguf(
        tmp_path_factory.mktemp("gguf") / "half.gguf",
        types="F16",
        metadata={"general.file_type": 1},
    )


@pytest.fixture(scope="module")
def slow_to_quantise(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """30 MB of zeros."""
    path = tmp_path_factory.mktemp("gguf") / "slow.gguf"
    write_zeros(random_header("llama", "F16", blocks=8, feed_forward=2048), path)
    return path


def ask(daemon: DaemonProcess, path: str, body: dict[str, object]) -> httpx.Response:
    return httpx.post(f"{daemon.url}{path}", json=body, timeout=120, trust_env=False)


def test_a_smaller_copy_answers(daemon: DaemonProcess, half_precision: pathlib.Path) -> None:
    assert create(daemon, "half", half_precision)[-1] == {"status": "success"}
    body: dict[str, object] = {"model": "half-q4", "from": "half", "quantize": "q4_K_M"}
    lines = stream_lines(f"{daemon.url}/api/create", body)
    statuses = [str(line["status"]) for line in lines]
    assert "quantizing F16 model to Q4_K_M" in statuses and "verifying conversion" in statuses
    assert statuses[-1] == "success"
    levels = {
        model["name"]: model["details"]["quantization_level"]
        for model in httpx.get(f"{daemon.url}/api/tags", trust_env=False).json()["models"]
    }
    assert (levels["half:latest"], levels["half-q4:latest"]) == ("F16", "Q4_K_M")
    shown = ask(daemon, "/api/show", {"model": "half-q4"}).json()
    assert shown["details"]["quantization_level"] == "Q4_K_M"
    assert shown["model_info"]["general.file_type"] == 15
    chat: dict[str, object] = {
        "model": "half-q4", "stream": False, "options": {"num_predict": 8, "temperature": 0},
        "messages": [{"role": "user", "content": "hello"}],
    }  # fmt: skip
    answer = ask(daemon, "/api/chat", chat)
    assert answer.status_code == 200 and answer.json()["eval_count"] > 0
    again = ask(daemon, "/api/chat", chat | {"model": "half"})
    assert again.status_code == 200


def test_the_command_line_quantises(daemon: DaemonProcess, half_precision: pathlib.Path) -> None:
    create(daemon, "base", half_precision)
    environment = daemon.environment | {"HEARTH_HOST": f"127.0.0.1:{daemon.port}"}
    command = [sys.executable, "-m", "daemon", "quantize", "base", "q8_0", "base:q8"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "base:q8" in names(daemon)


@pytest.mark.parametrize(
    ("types", "quantize", "status", "text"),
    [
        ("F16", "Q3_K_L", 500, "unsupported quantization type Q3_K_L - supported types are F32, F16"),
        ("Q4_K", "Q8_0", 500, "quantization is only supported for F16, BF16 and F32 models"),
    ],
)  # fmt: skip
def test_refusals(
    daemon: DaemonProcess,
    tmp_path: pathlib.Path,
    types: str,
    quantize: str,
    status: int,
    text: str,
) -> None:
    digest = upload(daemon, make_gguf(tmp_path / "a.gguf", types=types, blocks=1))
    body: dict[str, object] = {"model": "no", "files": {"a.gguf": digest}, "quantize": quantize}
    answer = ask(daemon, "/api/create", body | {"stream": False})
    assert answer.status_code == status
    assert answer.json()["error"].startswith(text)
    assert "error" in stream_lines(f"{daemon.url}/api/create", body)[-1]
    assert "no:latest" not in names(daemon)


def test_a_killed_quantiser_and_a_killed_daemon_leave_nothing(
    tmp_path: pathlib.Path, slow_to_quantise: pathlib.Path
) -> None:
    home = tmp_path / "home"
    with running(home) as daemon:
        digest = upload(daemon, slow_to_quantise)
        body = {"model": "m", "files": {"a.gguf": digest}, "quantize": "Q5_K_M"}
        kill = threading.Thread(
            target=lambda: os.kill(daemon.child_running("converters quantise").pid, signal.SIGKILL)
        )
        kill.start()
        assert "SIGKILL" in str(stream_lines(f"{daemon.url}/api/create", body)[-1]["error"])
        kill.join()
        assert leftovers(home) == [] and names(daemon) == {"ember:latest"}

        def give_up() -> None:
            with contextlib.suppress(httpx.TransportError):
                stream_lines(f"{daemon.url}/api/create", body)

        client = threading.Thread(target=give_up)
        client.start()
        daemon.child_running("converters quantise")
        daemon.kill()
        client.join()
    with running(home) as daemon:
        assert names(daemon) == {"ember:latest"}
        assert leftovers(home) == []
        assert list((home / "models").glob(".hearth-quantising/*/*")) == []
