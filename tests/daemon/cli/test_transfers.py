"""`hearth pull` and `hearth push` as processes, against a daemon and a registry on loopback."""

from __future__ import annotations

import asyncio
import pathlib
import signal
import sys

import pytest

from daemon.cli.arguments import parse_arguments
from tests.daemon.api.rig import api_rig
from tests.registry.server import Registry


def test_arguments() -> None:
    arguments = parse_arguments(["pull", "hf.co/user/repo:Q4_K_M", "--insecure"])
    assert (arguments.model, arguments.insecure) == ("hf.co/user/repo:Q4_K_M", True)
    assert not parse_arguments(["push", "m"]).insecure


async def hearth(base: str, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "daemon",
        *arguments,
        env={"HEARTH_HOST": base, "PATH": "/usr/bin:/bin"},
        stderr=asyncio.subprocess.PIPE,
        # A suite that a shell started in the background ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture
def layers() -> list[tuple[str, bytes]]:
    return [("system", b"Be brief."), ("license", b"L" * 900_000)]


async def test_pull_stop_pull_push(tmp_path: pathlib.Path, layers: list[tuple[str, bytes]]) -> None:
    async with Registry() as registry, api_rig(tmp_path) as rig:
        registry.chunk_bytes = 16 << 10
        registry.add_model("library/m", "latest", layers, {})
        registry.faults.bytes_per_second = 200_000
        name = f"{registry.host}/library/m"
        process = await hearth(rig.base, "pull", name, "--insecure")
        assert process.stderr is not None
        while registry.sent_bytes.total() < 200_000:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert b"goes on from there" in await process.stderr.read()
        assert await process.wait() == 130
        registry.faults.bytes_per_second = 0
        for command in ("pull", "push"):
            process = await hearth(rig.base, command, name, "--insecure")
            _, complaints = await process.communicate()
            assert (process.returncode, complaints.splitlines()[-1]) == (0, b"success")
        process = await hearth(rig.base, "pull", f"{name}x", "--insecure")
        _, complaints = await process.communicate()
        assert process.returncode == 1
        assert b"Error: pull model manifest: file does not exist" in complaints
