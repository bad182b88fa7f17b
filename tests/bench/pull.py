"""Throughput and CPU of a pull from loopback: `python -m tests.bench.pull --size-mb 2000`.

The registry runs in a process of its own; the blob needs no conversion, so that only fetching,
writing, syncing and digesting are measured. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import httpx
import psutil

from tests.e2e.daemon_process import DaemonProcess
from tests.registry.server import MANIFEST_TYPE


def make_blob(folder: pathlib.Path, size: int) -> None:
    """Random bytes by their digest, and the manifest that names them."""
    digest, rest = hashlib.sha256(), size
    with (folder / "blob").open("wb") as file:
        while rest:
            chunk = os.urandom(min(rest, 8 << 20))
            digest.update(chunk)
            file.write(chunk)
            rest -= len(chunk)
    name = f"sha256:{digest.hexdigest()}"
    (folder / "blob").rename(folder / name)
    layer = {"mediaType": "application/vnd.ollama.image.projector", "digest": name, "size": size}
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "layers": [layer]}
    (folder / "manifest").write_text(json.dumps(manifest))


def measure(daemon: DaemonProcess, host: str, size: int) -> None:
    assert daemon.process is not None
    process = psutil.Process(daemon.process.pid)
    body = {"model": f"{host}/library/m", "insecure": True}
    # The first request of all imports the HTTP client; that is not throughput.
    httpx.post(f"{daemon.url}/api/pull", json={"model": "127.0.0.1:1/a/b"}, trust_env=False)
    marks: list[tuple[str, float, float]] = []
    with httpx.stream(
        "POST", f"{daemon.url}/api/pull", json=body, timeout=600, trust_env=False
    ) as answer:
        for text in answer.iter_lines():
            line = json.loads(text)
            if "error" in line:
                raise SystemExit(line["error"])
            if not marks or marks[-1][0] != line["status"]:
                times = process.cpu_times()
                marks.append((line["status"], time.monotonic(), times.user + times.system))
    for (status, begin, before), (_, end, after) in itertools.pairwise(marks):
        if end - begin > 0.05:
            rate = size / 1e6 / (end - begin)
            print(
                f"  {status}: {end - begin:.2f} s, {rate:.0f} MB/s, {after - before:.2f} s of CPU"
            )
    seconds, cpu = marks[-1][1] - marks[0][1], marks[-1][2] - marks[0][2]
    print(
        f"pull of {size / 1e6:.0f} MB: {seconds:.2f} s, {size / 1e6 / seconds:.0f} MB/s with "
        f"digesting, {cpu / seconds:.2f} cores, resident {process.memory_info().rss >> 20} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mb", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", help="where blobs and store lie (a tmpfs leaves out the disk)")
    arguments = parser.parse_args()
    size = arguments.size_mb * 10**6
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        root = pathlib.Path(name)
        (root / "registry").mkdir()
        make_blob(root / "registry", size)
        command = [sys.executable, "-m", "tests.bench.registry_process", str(root / "registry")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as registry:
            assert registry.stdout is not None
            host = registry.stdout.readline().strip()
            for run in range(arguments.runs):
                with DaemonProcess(root / f"home{run}") as daemon:
                    measure(daemon, host, size)
                for blob in (root / f"home{run}" / "models" / "blobs").iterdir():
                    blob.unlink()
            registry.terminate()


if __name__ == "__main__":
    main()
