"""How long a decoding client waits beside a conversion: `python -m tests.bench.conversion_gap`.

A real daemon decodes for one client, first alone, then while it converts another model of `--megabytes`
(at the low priority that the daemon gives a conversion). Prints the longest and the median time between
two lines of the stream for both, and how long the conversion took.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import httpx

from tests.bench.conversion import single_type
from tests.e2e.daemon_process import DaemonProcess
from tests.models.random_gguf import Size, make_gguf

# Small enough to decode much faster than a client reads.
CLIENT_MODEL = Size(
    blocks=8, embedding=1024, heads=16, kv_heads=4, feed_forward=2816, vocabulary=8000
)
IDS_PER_ANSWER = 400


def gaps(daemon: DaemonProcess, is_over: Callable[[], bool]) -> list[float]:
    """Seconds between the lines of answers one after the other, until asked to stop."""
    found: list[float] = []
    options = {"num_predict": IDS_PER_ANSWER, "temperature": 1.0}
    body = {"model": "client", "prompt": "word word", "raw": True, "options": options}
    with httpx.Client(timeout=600, trust_env=False) as client:
        while not is_over():
            with client.stream("POST", f"{daemon.url}/api/generate", json=body) as answer:
                answer.raise_for_status()
                before = 0.0
                for _ in answer.iter_lines():
                    now = time.monotonic()
                    found += [now - before] if before else []
                    before = now
                    if is_over():
                        break
    return found


def load(daemon: DaemonProcess) -> None:
    body = {"model": "client", "stream": False}
    httpx.post(
        f"{daemon.url}/api/generate", json=body, timeout=600, trust_env=False
    ).raise_for_status()


def bring_in(daemon: DaemonProcess, source: pathlib.Path, name: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "daemon", "import", str(source), name]
    return subprocess.Popen(
        command, env=daemon.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def told(name: str, found: list[float]) -> None:
    print(
        f"{name}: longest gap {max(found) * 1e3:.0f} ms, median {statistics.median(found) * 1e3:.1f} ms"
        f" of {len(found)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.conversion_gap", description=__doc__
    )
    parser.add_argument("--types", default="Q4_K")
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20, help="of decoding alone")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        DaemonProcess(pathlib.Path(name) / "home") as daemon,
    ):
        folder = pathlib.Path(name)
        small = make_gguf(folder / "client.gguf", types="Q4_0", **CLIENT_MODEL)
        if bring_in(daemon, small, "client").wait():
            raise SystemExit(daemon.log)
        large = single_type(folder, options.types, options.megabytes, experts=False)
        load(daemon)
        until = time.monotonic() + options.seconds
        told("alone", gaps(daemon, lambda: time.monotonic() > until))
        begin = time.monotonic()
        conversion = bring_in(daemon, large, "other")
        beside = gaps(daemon, lambda: conversion.poll() is not None)
        told("beside a conversion", beside)
        print(
            f"{large.stat().st_size / 1e6:.0f} MB hashed, inspected and converted in "
            f"{time.monotonic() - begin:.1f} s"
        )
        if conversion.returncode:
            raise SystemExit(daemon.log)


if __name__ == "__main__":
    main()
