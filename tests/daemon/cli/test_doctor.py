"""`hearth doctor` as a process, with a daemon and without."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import sys

import msgspec
import pytest

from backends.select import Hindrance, Machine, RuntimeFacts
from daemon.cli.doctor import _print
from daemon.diagnosis import diagnose
from daemon.lan.access import add_key
from tests.daemon.api.rig import api_rig
from tests.daemon.api.serving import loopback_config


async def doctor(host: str, home: pathlib.Path, *flags: str) -> tuple[int, str, str]:
    environment = os.environ | {"HEARTH_HOST": host, "HEARTH_HOME": str(home)}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "daemon", "doctor", *flags,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )  # fmt: skip
    output, errors = await child.communicate()
    assert child.returncode is not None
    return child.returncode, output.decode(), errors.decode()


async def test_without_a_daemon(tmp_path: pathlib.Path):
    code, output, _ = await doctor("127.0.0.1:1", tmp_path)
    assert code == 0
    assert "ONNX Runtime" in output and "No daemon of this build answers" in output


async def test_a_running_daemon_is_asked(tmp_path: pathlib.Path):
    async with api_rig(tmp_path) as rig:
        code, output, _ = await doctor(
            rig.base.removeprefix("http://"), tmp_path / "other", "--json"
        )
        answer = json.loads(output)
        assert code == 0
        assert answer["listening"]["answers"] is True
        assert answer["places"][0]["path"] == str(tmp_path)
        assert answer["choices"][0]["device"] == "cpu"


def test_what_is_printed(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    hindrance = Hindrance(device="cuda", reason="a GPU is here, but it sleeps", remedy="wake it")
    onnx = RuntimeFacts(name="onnx", version="1.31.1", devices=("cpu",), hindrances=(hindrance,))
    mlx = RuntimeFacts(name="mlx", reason="mlx is not installed")
    machine = Machine(
        system="Linux", processor="x86_64", release="glibc 2.36", runtimes=(mlx, onnx)
    )
    config = loopback_config(tmp_path, host="0.0.0.0", port=11434, open_lan=True)
    add_key(tmp_path, "laptop", "use")
    _print(diagnose(config, machine, version="1.2.3", answers=True))
    text = capsys.readouterr().out
    assert text.startswith("Hearth 1.2.3 on Linux x86_64, glibc 2.36\n")
    assert "  - a GPU is here, but it sleeps; wake it\n" in text
    assert "MLX                        none       mlx is not installed" in text
    where = "Listening on 0.0.0.0:11434, open to"
    assert f"{where} the network without a key and announced as be=ort-cpu\n" in text
    guarded = msgspec.structs.replace(config, open_lan=False)
    _print(diagnose(guarded, machine, version="1.2.3", answers=True))
    text = capsys.readouterr().out
    assert f"{where} whoever has a key (there is 1) and announced as be=ort-cpu\n" in text
