"""Whole-machine figures through a real daemon: `make bench ARGS="--size 1.1B --types Q4_K_M"`.

Prints one line a figure: conversion seconds and peak memory, load seconds, prefill and decode rates
for one and several clients, and what the daemon itself holds. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import httpx
import psutil

from tests.e2e.daemon_process import DaemonProcess
from tests.models.random_gguf import SIZES, make_gguf

MEBIBYTE = 1 << 20


class PeakMemory:
    """Most memory of a process and its children, sampled until it ends; shared pages count once."""

    def __init__(self, pid: int) -> None:
        self.resident_bytes = 0
        self.private_bytes = 0
        self._process = psutil.Process(pid)
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while True:
            try:
                family = [self._process, *self._process.children(recursive=True)]
                found = [process.memory_full_info() for process in family]
                has_ended = self._process.status() == psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess:  # a child's end is not the family's
                has_ended, found = not self._process.is_running(), []
            if has_ended:
                return
            self.resident_bytes = max(self.resident_bytes, sum(each.pss for each in found))
            self.private_bytes = max(self.private_bytes, sum(each.uss for each in found))
            time.sleep(0.2)  # looking costs the family time

    def join(self) -> None:
        self._thread.join()


def convert(source: pathlib.Path, output: pathlib.Path, *, precise: bool) -> None:
    command = [sys.executable, "-m", "converters", "convert", "--input", str(source)]
    command += ["--source", "0" * 64, "--target", "onnx-cpu", "--output", str(output)]
    command += ["--precise"] if precise else []
    begin = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
        peak = PeakMemory(child.pid)
    peak.join()
    seconds = time.monotonic() - begin
    if child.returncode:
        raise SystemExit(f"the converter ended with {child.returncode}")
    size = source.stat().st_size
    artifact = sum(file.stat().st_size for file in output.iterdir())
    print(f"GGUF {size / 1e6:.0f} MB, artifact {artifact / 1e6:.0f} MB")
    print(
        f"convert {seconds:.1f} s, {size / 1e6 / seconds:.0f} MB/s, peak resident "
        f"{peak.resident_bytes / MEBIBYTE:.0f} MiB, of that private {peak.private_bytes / MEBIBYTE:.0f} MiB"
    )


def generate(daemon: DaemonProcess, prompt: str, count: int) -> dict[str, Any]:
    body = {
        "model": "bench",
        "prompt": prompt,
        "raw": True,
        "stream": False,
        "options": {"temperature": 0, "num_predict": count},
    }
    answer = httpx.post(f"{daemon.url}/api/generate", json=body, timeout=600, trust_env=False)
    answer.raise_for_status()
    return answer.json()


def rate(answer: dict[str, Any], kind: str) -> float:
    return answer[f"{kind}_count"] / answer[f"{kind}_duration"] * 1e9


def serve(source: pathlib.Path, home: pathlib.Path, *, runs: int, clients: list[int]) -> None:
    with DaemonProcess(home, HEARTH_NUM_PARALLEL=str(max(clients))) as daemon:
        subprocess.run(
            [sys.executable, "-m", "daemon", "import", str(source), "bench"],
            env=daemon.environment,
            check=True,
            stderr=subprocess.DEVNULL,
        )
        begin = time.monotonic()
        generate(daemon, "", 0)
        print(f"load {time.monotonic() - begin:.2f} s")
        answers = [generate(daemon, f"{run} " + "word " * 400, 48) for run in range(runs)]
        for kind in ("prompt_eval", "eval"):
            figures = [rate(answer, kind) for answer in answers]
            print(
                f"{kind} {statistics.median(figures):.1f} tokens/s "
                f"(of {runs}: {min(figures):.1f} to {max(figures):.1f}), "
                f"{answers[0][kind + '_count']} tokens"
            )
        for count in clients:
            print(f"decode of {count} clients together: {together(daemon, count):.1f} tokens/s")
        print_memory(daemon)


def together(daemon: DaemonProcess, count: int) -> float:
    """Ids a second over all clients, measured between the first and the last answer's end."""
    answers: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda n=n: answers.append(generate(daemon, f"{n} word", 64)))
        for n in range(count)
    ]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(answer["eval_count"] for answer in answers) / (time.monotonic() - begin)


def print_memory(daemon: DaemonProcess) -> None:
    assert daemon.process is not None
    own = psutil.Process(daemon.process.pid).memory_info().rss
    print(f"daemon resident {own / MEBIBYTE:.0f} MiB")
    for child in daemon.children():
        memory = child.memory_info()
        print(
            f"worker resident {memory.rss / MEBIBYTE:.0f} MiB, private {(memory.rss - memory.shared) / MEBIBYTE:.0f} MiB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="1.1B")
    parser.add_argument("--types", default="Q4_K_M")
    parser.add_argument("--file", type=pathlib.Path, help="a GGUF instead of a random one")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--precise", action="store_true")
    parser.add_argument("--convert-only", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        source = arguments.file or make_gguf(
            root / "model.gguf", types=arguments.types, **SIZES[arguments.size]
        )
        convert(source, root / "artifact", precise=arguments.precise)
        if not arguments.convert_only:
            serve(source, root / "home", runs=arguments.runs, clients=arguments.clients)


if __name__ == "__main__":
    main()
