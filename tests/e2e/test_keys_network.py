"""Two machines on one wire: one serves by key, the other finds it and asks."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.daemon.lan.namespaces import ROOT, TwoHosts, why_impossible

IMPOSSIBLE = why_impossible()
PORT = 11434

pytestmark = [
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.skipif(bool(IMPOSSIBLE), reason=IMPOSSIBLE or "never"),
]


def command(namespace: str, *arguments: str) -> list[str]:
    return ["ip", "netns", "exec", namespace, sys.executable, "-m", "daemon", *arguments]


def environment(home: pathlib.Path, host: str, key: str = "") -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OLLAMA_", "HEARTH_"))}
    own = {"HEARTH_HOME": str(home), "HEARTH_HOST": host, "HEARTH_REGISTRIES": "127.0.0.1"}
    return kept | own | {"HEARTH_KEY": key}


def hearth(
    namespace: str, home: pathlib.Path, host: str, key: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(namespace, *arguments),
        env=environment(home, host, key),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def hosts() -> Iterator[TwoHosts]:
    hosts = TwoHosts()
    try:
        yield hosts
    finally:
        hosts.close()


@contextlib.contextmanager
def serving(namespace: str, home: pathlib.Path, host: str) -> Iterator[None]:
    """Until the other machine would get an answer."""
    log = home.parent / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command(namespace, "serve"),
            env=environment(home, f"{host}:{PORT}"),
            cwd=ROOT,
            stdout=file,
            stderr=file,
        )
    try:
        deadline = time.monotonic() + 60
        while "announced as" not in (text := log.read_text()):
            assert process.poll() is None and time.monotonic() < deadline, text
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_found_and_used_by_key(hosts: TwoHosts, tmp_path: pathlib.Path, host: str) -> None:
    """Over IPv4 also where the socket is IPv6's, whose peers have mapped addresses."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    local = f"{host}:{PORT}"
    made = hearth(hosts.a, home, local, "", "key", "add", "reader")
    key = made.stdout.strip()
    with serving(hosts.a, home, host):
        found = hearth(hosts.b, elsewhere, "127.0.0.1:1", "", "discover", "--json")
        (peer,) = [json.loads(line) for line in found.stdout.splitlines()]
        assert peer["properties"]["auth"] == "bearer"
        assert peer["addresses"][0] == "10.77.0.1"
        for address in peer["addresses"]:
            where = f"[{address}]:{PORT}" if ":" in address else f"{address}:{PORT}"
            refused = hearth(hosts.b, elsewhere, where, "", "list")
            assert refused.returncode == 1 and "wants a key" in refused.stderr
            refused = hearth(hosts.b, elsewhere, where, "", "key", "add", "mine")
            assert refused.returncode == 1 and "wants a key" in refused.stderr
            listed = hearth(hosts.b, elsewhere, where, key, "list")
            assert listed.returncode == 0 and "ember" in listed.stdout
            refused = hearth(hosts.b, elsewhere, where, key, "rm", "ember")
            assert refused.returncode == 1 and "'manage'" in refused.stderr
        assert hearth(hosts.a, home, local, "", "key", "remove", "reader").returncode == 0
        refused = hearth(hosts.b, elsewhere, f"10.77.0.1:{PORT}", key, "list")
        assert refused.returncode == 1 and "does not know the key" in refused.stderr
        assert "ember" in hearth(hosts.a, home, local, "", "list").stdout
    assert not elsewhere.exists()
