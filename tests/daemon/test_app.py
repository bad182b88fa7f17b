"""The daemon as a process: what it starts, what it says, what it imports, how it ends."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from backends.scripted.make import write_artifact
from backends.scripted.script import Rule, Script
from converters.artifact import variant_folder
from daemon.app import ANSWER_GRACE_SECONDS
from tests.models.random_gguf import make_gguf

# Serves, and says at the end which modules it has.
PROGRAM = """
import sys
from daemon.app import serve_command
status = serve_command({})
print("MODULES", *sorted({name.split(".")[0] for name in sys.modules}))
sys.exit(status)
"""
HEAVY = {"numpy", "jinja2", "tokenizers", "onnx", "onnxruntime", "mlx", "backends.onnx"}
MAX_RESIDENT_BYTES = 90 << 20


class Daemon:
    """A running daemon; `base` is its address, `output` what it wrote once it has ended."""

    def __init__(self, process: subprocess.Popen[str], base: str) -> None:
        self.process = process
        self.base = base
        self.output = ""

    def end(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Seconds until it was gone."""
        started = time.monotonic()
        self.process.send_signal(number)
        self.output, _ = self.process.communicate(timeout=20)
        return time.monotonic() - started


def _environment(home: pathlib.Path, **variables: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HEARTH_", "OLLAMA_"))}
    root = str(pathlib.Path(__file__).parents[2])
    return (
        kept
        | {"HEARTH_HOME": str(home), "HEARTH_HOST": "127.0.0.1:0", "PYTHONPATH": root}
        | variables
    )


def _start(home: pathlib.Path, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=_environment(home, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextlib.contextmanager
def daemon(home: pathlib.Path, **variables: str) -> Iterator[Daemon]:
    process = _start(home, **variables)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r"listening on (\S+)", line):
                yield Daemon(process, f"http://{found[1]}")
                break
        else:
            pytest.fail("the daemon ended before it listened")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def shelf(tmp_path: pathlib.Path) -> pathlib.Path:
    """A model file small enough to be converted in a moment."""
    return make_gguf(
        tmp_path / "tiny.gguf",
        types="Q8_0",
        blocks=1,
        embedding=64,
        heads=2,
        kv_heads=1,
        feed_forward=64,
    )


@pytest.mark.slow
def test_one_life(tmp_path: pathlib.Path, shelf: pathlib.Path) -> None:
    """Every kind of request on real conversion and inference, then a clean end in mid-answer."""
    with daemon(tmp_path / "home") as running, httpx.Client(base_url=running.base) as client:
        client.timeout = httpx.Timeout(60)
        imported = client.post("/api/import", json={"path": str(shelf), "model": "tiny"})
        assert imported.text.splitlines()[-1] == '{"status":"success"}'
        assert client.post("/api/create", json={"model": "b", "from": "tiny"}).status_code == 200
        assert client.post("/api/show", json={"model": "tiny", "verbose": True}).status_code == 200
        options = {"seed": 1, "num_predict": 4}
        body = {"model": "tiny", "prompt": "a", "options": options, "stream": False}
        answers = [client.post("/api/generate", json=body) for _ in range(2)]
        assert answers[0].status_code == 200, answers[0].text
        assert answers[0].json()["response"] == answers[1].json()["response"]
        message = {"role": "user", "content": "a"}
        chatted = client.post(
            "/api/chat", json={"model": "b", "messages": [message], "options": options}
        )
        assert '"done":true' in chatted.text
        for path in ("/api/tags", "/api/ps", "/readyz", "/openapi/openapi.json", "/metrics"):
            assert client.get(path).status_code == 200
        for path in ("/api/copy", "/api/pull", "/api/blobs/sha256:0"):
            assert client.post(path, json={}).status_code >= 400
        inspected = psutil.Process(running.process.pid)
        assert inspected.memory_info().rss < MAX_RESIDENT_BYTES
        children = inspected.children(recursive=True)
        assert children
        endless = {"model": "tiny", "prompt": "a", "options": {"num_predict": -1}}
        with client.stream("POST", "/api/generate", json=endless) as stream:
            next(stream.iter_lines())
            assert running.end() < 10
        assert running.process.returncode == 0
        _, alive = psutil.wait_procs(children, timeout=1)
        assert not alive
        modules = running.output.partition("MODULES ")[2].split()
        assert "litestar" in modules
        assert HEAVY.isdisjoint(modules)
        assert "Traceback" not in running.output


@pytest.mark.slow
def test_stopping_ends_running_answers_with_an_error(
    tmp_path: pathlib.Path, shelf: pathlib.Path
) -> None:
    home = tmp_path / "home"
    digest = hashlib.sha256(shelf.read_bytes()).hexdigest()
    endless = Script(otherwise=Rule(pieces=("tick ",) * 10_000, delay_seconds=0.02))
    write_artifact(home / "artifacts" / digest / variant_folder("scripted"), endless)
    with daemon(home, HEARTH_BACKEND="scripted") as running:
        body = {"path": str(shelf), "model": "tiny"}
        assert "success" in httpx.post(f"{running.base}/api/import", json=body, timeout=60).text
        asked = {"model": "tiny", "prompt": "a"}
        with httpx.stream("POST", f"{running.base}/api/generate", json=asked, timeout=60) as stream:
            lines = stream.iter_lines()
            assert "tick" in next(lines)
            assert ANSWER_GRACE_SECONDS <= running.end() < 10
            assert list(lines)[-1].startswith('{"error":')
    assert running.process.returncode == 0
    assert "Traceback" not in running.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_daemon_ends_at_once(tmp_path: pathlib.Path, number: signal.Signals) -> None:
    with daemon(tmp_path) as running:
        connection = httpx.Client(base_url=running.base)
        assert connection.get("/").text == "Ollama is running"
        assert running.end(number) < 5
        assert running.process.returncode == 0
        assert "Traceback" not in running.output
        connection.close()


def test_a_taken_port_is_one_sentence_and_touches_nothing(tmp_path: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        process = _start(tmp_path / "home", HEARTH_HOST=where)
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert f"cannot listen on {where}" in output
    assert "Traceback" not in output
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"HEARTH_HOST": "0.0.0.0:0"}, "hearth key add NAME (here HEARTH_HOME is "),
        ({"HEARTH_HOST": "127.0.0.1:x"}, "not a port"),
        ({"OLLAMA_ORIGINS": "example.com"}, "scheme"),
    ],
)
def test_a_bad_configuration_ends_with_78(
    tmp_path: pathlib.Path, variables: dict[str, str], message: str
) -> None:
    process = _start(tmp_path / "home", **variables)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 78
    assert message in output
    assert len(output.partition("MODULES")[0].splitlines()) == 1
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("host", ["127.0.0.1:0", "0.0.0.0:0"])
@pytest.mark.parametrize("is_open", ["0", "1"])
def test_damaged_keys_end_with_78_whoever_could_connect(
    tmp_path: pathlib.Path, host: str, is_open: str
) -> None:
    (tmp_path / "keys.json").write_text('{"version":1,"keys":[')
    process = _start(tmp_path, HEARTH_HOST=host, HEARTH_OPEN=is_open)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 78
    assert "keys.json" in output and str(tmp_path) in output
    assert len(output.partition("MODULES")[0].splitlines()) == 1


def test_the_service_manager_is_told(tmp_path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(10)
        with daemon(tmp_path / "home", NOTIFY_SOCKET=str(tmp_path / "notify")) as running:
            assert listener.recv(100) == b"READY=1"
            assert httpx.get(f"{running.base}/readyz").status_code == 200
            running.end()
            assert listener.recv(100) == b"STOPPING=1"


def test_the_watchdog_is_fed_from_the_start_to_the_end(tmp_path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(10)
        variables = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
        with daemon(tmp_path / "home", **variables) as running:
            assert listener.recv(100) == b"READY=1"
            assert [listener.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            running.process.send_signal(signal.SIGTERM)
            states = iter(lambda: listener.recv(100), b"STOPPING=1")
            assert set(states) <= {b"WATCHDOG=1"}
            assert running.end() < 5
        assert running.process.returncode == 0
        assert "Traceback" not in running.output
