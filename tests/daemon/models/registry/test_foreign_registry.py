"""A registry program that others wrote, on loopback: push to it, pull from it."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from daemon.models.name import parse_name
from tests.daemon.models.registry.pulling import PullingShelf, texts
from tests.daemon.models.shelf import gguf
from tests.e2e.daemon_process import free_port
from tests.registry.server import Registry

PROGRAM = shutil.which("docker-registry") or shutil.which("registry")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no OCI registry program is installed")


@pytest.fixture
def host(tmp_path: pathlib.Path) -> Iterator[str]:
    """host:port of a registry that runs with its files in a temporary folder."""
    assert PROGRAM is not None
    found = f"127.0.0.1:{free_port()}"
    settings = tmp_path / "registry.yml"
    settings.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {tmp_path / 'registry'}}}}}\n"
        f"http: {{addr: '{found}'}}\n"
    )
    process = subprocess.Popen(
        [PROGRAM, "serve", str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until_it_answers(f"http://{found}/v2/")
        yield found
    finally:
        process.terminate()
        process.wait(10)


def wait_until_it_answers(url: str) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url).close()
            return
        except urllib.error.URLError:
            time.sleep(0.05)
    raise AssertionError("the registry does not answer")


async def test_there_and_back(host: str, tmp_path: pathlib.Path) -> None:
    registry = Registry()
    registry.host = host
    one, two = PullingShelf(tmp_path / "one"), PullingShelf(tmp_path / "two")
    try:
        await one.make(f"{host}/library/m", gguf(note="x" * 5_000_000), system="Be brief.")
        assert texts(await one.push(host))[-1] == "success"
        assert texts(await two.pull(registry))[-1] == "success"
        name = parse_name(f"{host}/library/m")
        assert two.store.manifest_bytes(name) == one.store.manifest_bytes(name)
        assert two.leftovers() == []
        assert not any("digest" in line for line in await one.push(host) if "total" not in line)
    finally:
        await one.conversions.close()
        await two.conversions.close()
