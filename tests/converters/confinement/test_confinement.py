"""What a confined process still can and cannot do, tried in one: it is never undone."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from converters.confinement.sandbox_profile import make_profile

ROOT = pathlib.Path(__file__).resolve().parents[3]
is_linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux's layers")

PRELUDE = """
import json, os, pathlib, signal, socket, subprocess, sys, threading
from converters.confinement import confine, die_with_parent
output, secret = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
given = open(secret / "input", "rb")
limits = dict(data_bytes=1 << 30, file_bytes=1 << 20, cpu_seconds=20)
layers = confine(write=[output], **limits)
def attempt(action):
    try:
        return repr(action())
    except BaseException as error:
        return type(error).__name__
"""


def run(body: str, folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
    (folder / "output").mkdir(exist_ok=True)
    (folder / "secret").mkdir(exist_ok=True)
    (folder / "secret" / "input").write_text("input")
    return subprocess.run(
        [
            sys.executable,
            "-c",
            PRELUDE + textwrap.dedent(body),
            folder / "output",
            folder / "secret",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def attempts(actions: dict[str, str], folder: pathlib.Path) -> dict[str, str]:
    lines = [f"    {name!r}: attempt(lambda: {action})," for name, action in actions.items()]
    body = "print(json.dumps({\n" + "\n".join(lines) + "\n}))"
    finished = run(body, folder)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


@is_linux
def test_the_layers_are_named(tmp_path: pathlib.Path) -> None:
    layers = json.loads(run("print(json.dumps(layers))", tmp_path).stdout)
    assert layers[0] == "limits"
    assert {"no_new_privs", "seccomp"} <= set(layers)


@is_linux
def test_no_network_no_programs_no_processes(tmp_path: pathlib.Path) -> None:
    denied = {
        "internet": "socket.socket(socket.AF_INET)",
        "internet 6": "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
        "local socket": "socket.socket(socket.AF_UNIX)",
        "program": "subprocess.run(['/bin/true'])",
        "replace": "os.execv(sys.executable, [sys.executable])",
        "fork": "os.fork()",
        "signal to another": "os.kill(os.getppid(), 0)",
    }
    found = attempts(denied, tmp_path)
    assert found == dict.fromkeys(denied, "PermissionError")


@is_linux
def test_what_a_conversion_needs_works(tmp_path: pathlib.Path) -> None:
    found = attempts(
        {
            "read what is open": "given.read()",
            "write": "(output / 'a').write_bytes(b'xy')",
            "folder": "(output / 'staging').mkdir()",
            "publish": "(output / 'staging').rename(output / 'final').name",
            "sync": "os.fsync(os.open(output, os.O_RDONLY))",
            "null": "open('/dev/null', 'w').write('x')",
            "import late": "int(__import__('numpy').ones(3).sum())",
            "signal to itself": "signal.raise_signal(0)",
        },
        tmp_path,
    )
    assert found == {
        "read what is open": "b'input'",
        "write": "2",
        "folder": "None",
        "publish": "'final'",
        "sync": "None",
        "null": "1",
        "import late": "3",
        "signal to itself": "None",
    }


@is_linux
def test_files_elsewhere_are_out_of_reach(tmp_path: pathlib.Path) -> None:
    if not any(layer.startswith("landlock") for layer in _layers(tmp_path)):
        pytest.skip("this kernel has no Landlock")
    denied = {
        "read": "open(secret / 'input')",
        "write beside": "open(output.parent / 'x', 'w')",
        "list": "os.listdir(secret)",
        "users": "open('/etc/passwd')",
        "move out": "(secret / 'input').rename(output / 'stolen')",
        "link": "(output / 'link').symlink_to('/etc')",
    }
    found = attempts(denied, tmp_path)
    assert found == dict.fromkeys(denied, "PermissionError")
    assert not (tmp_path / "x").exists()


def _layers(folder: pathlib.Path) -> list[str]:
    return json.loads(run("print(json.dumps(layers))", folder).stdout)


def test_memory_and_files_are_bounded(tmp_path: pathlib.Path) -> None:
    found = attempts(
        {
            "memory": "bytearray(2 << 30)",
            "file": "(output / 'big').write_bytes(bytes(2 << 20))",
            "files": "[open('/dev/null') for _ in range(400)]",
        },
        tmp_path,
    )
    assert found["file"] == "OSError" and found["files"] == "OSError"
    if sys.platform == "linux":
        assert found["memory"] == "MemoryError"


def test_endless_work_is_ended(tmp_path: pathlib.Path) -> None:
    body = "confine(write=[output], **limits | {'cpu_seconds': 1})\nwhile True: pass"
    finished = run(body, tmp_path)
    assert finished.returncode in (-signal.SIGXCPU, -signal.SIGKILL)


def test_a_limit_is_never_raised(tmp_path: pathlib.Path) -> None:
    body = """
    import resource
    confine(write=[output], **limits | {"file_bytes": 1 << 30})
    print(resource.getrlimit(resource.RLIMIT_FSIZE)[0])
    """
    assert int(run(body, tmp_path).stdout) == 1 << 20


CHILD = "import time; from converters.confinement import die_with_parent; die_with_parent({parent})"
MIDDLE = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_child_ends_with_its_parent() -> None:
    child = CHILD.format(parent="") + "; print('ready', flush=True); time.sleep(60)"
    middle = subprocess.Popen(
        [sys.executable, "-c", MIDDLE, child], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert middle.stdout is not None
    child_pid = int(middle.stdout.readline())
    assert _is_running(child_pid)
    middle.kill()
    middle.wait()
    middle.stdout.close()
    deadline = time.monotonic() + 10
    while _is_running(child_pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_parent_that_is_gone_already_is_noticed() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", CHILD.format(parent=1 << 30)], cwd=ROOT, timeout=30, check=False
    )
    assert finished.returncode == -signal.SIGTERM


def _is_running(process_id: int) -> bool:
    """A zombie that nobody waits for counts as ended."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    status = pathlib.Path(f"/proc/{process_id}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_the_macos_profile_names_real_paths(tmp_path: pathlib.Path) -> None:
    awkward = tmp_path / 'a "quoted" name'
    awkward.mkdir()
    (tmp_path / "link").symlink_to(awkward)
    profile = make_profile([tmp_path / "missing"], [tmp_path / "link"])
    assert '\\"quoted\\"' in profile and "link" not in profile
    assert profile.index("(deny file-write*)") < profile.index("(allow file-write*")
