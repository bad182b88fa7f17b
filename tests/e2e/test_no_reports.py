"""A daemon that runs a model reports it to nobody: its runtimes' own telemetry is off."""

from __future__ import annotations

import pathlib
import time

import httpx

from tests.e2e.daemon_process import DaemonProcess

# What ONNX Runtime keeps for the next time that it reports, by file name.
REPORTS = ("onnxruntime.db*", "deviceid")
# It begins a moment after its import.
MOMENT_SECONDS = 1.0


def test_no_runtime_writes_or_sends_reports(tmp_path: pathlib.Path) -> None:
    caches = tmp_path / "caches"
    daemon = DaemonProcess(tmp_path / "home", XDG_CACHE_HOME=str(caches), HOME=str(tmp_path))
    # Tests turn it off for what they import themselves; the daemon has to do so on its own.
    del daemon.environment["ORT_DISABLE_TELEMETRY"]
    with daemon:
        body = {"model": "ember", "prompt": "x", "stream": False, "options": {"num_predict": 2}}
        answer = httpx.post(f"{daemon.url}/api/generate", json=body, timeout=60, trust_env=False)
        assert answer.json()["eval_count"] == 2
        time.sleep(MOMENT_SECONDS)
        assert [found for name in REPORTS for found in tmp_path.rglob(name)] == []
