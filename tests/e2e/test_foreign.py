"""A real daemon beside another program's folder: served where it lies, unplugged, adopted."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys

import httpx

from tests.e2e.daemon_process import ROOT, DaemonProcess

NAME = "somebody/Tiny-GGUF:Q4_K_M"


def hearth(daemon: DaemonProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "daemon", *arguments],
        cwd=ROOT,
        env=daemon.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def names(daemon: DaemonProcess) -> list[str]:
    answer = httpx.get(f"{daemon.url}/api/tags", trust_env=False)
    return [model["name"] for model in answer.json()["models"]]


def generate(daemon: DaemonProcess, model: str) -> httpx.Response:
    body = {"model": model, "prompt": "a", "stream": False, "options": {"num_predict": 2}}
    return httpx.post(f"{daemon.url}/api/generate", json=body, timeout=120, trust_env=False)


def test_another_programs_folder(tmp_path: pathlib.Path, small_gguf: pathlib.Path) -> None:
    disk, away = tmp_path / "disk", tmp_path / "away"
    file = disk / "somebody/Tiny-GGUF/tiny-Q4_K_M.gguf"
    file.parent.mkdir(parents=True)
    shutil.copy(small_gguf, file)
    with DaemonProcess(tmp_path / "home", HEARTH_FOREIGN=str(disk)) as daemon:
        assert NAME in names(daemon)
        answer = generate(daemon, NAME)
        assert (answer.status_code, answer.json()["eval_count"]) == (200, 2), answer.text
        artifacts = list((tmp_path / "home/artifacts").glob("*/*/artifact.json"))
        assert file.exists()
        assert hearth(daemon, "show", NAME, "--modelfile").stdout.count(f"FROM {file}\n") == 1

        hearth(daemon, "stop", NAME)
        disk.rename(away)
        gone = generate(daemon, NAME)
        assert (gone.status_code, "not there now" in gone.text) == (404, True)
        daemon.stop()
        daemon.start()
        assert NAME not in names(daemon)
        assert set(artifacts) <= set((tmp_path / "home/artifacts").glob("*/*/artifact.json"))
        away.rename(disk)

        refused = hearth(daemon, "rm", NAME)
        assert refused.returncode == 1
        assert "hearth adopt" in refused.stderr
        table = hearth(daemon, "du").stdout
        assert f"{disk}" in table
        assert NAME in table
        adopted = hearth(daemon, "adopt", str(disk))
        assert adopted.returncode == 0, adopted.stderr
        assert hearth(daemon, "rm", NAME).returncode == 0
        assert not file.exists()
        assert NAME not in names(daemon)
