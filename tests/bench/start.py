"""How long backends take to begin: `python -m tests.bench.start --runs 5`; medians, interleaved.

Imports in a fresh interpreter, the probe that chooses a backend, and a worker from its start to the
model loaded. mlx-lm imported whole is beside it for comparison: no part of Hearth does that.
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

from backends.types import Loaded
from tests.backends.worker.worker_client import SCRIPTED, WorkerClient
from tests.models.random_gguf import make_gguf
from tests.parity.converted import converted_file

TARGETS = {"onnx": "onnx-cpu", "mlx": "mlx"}


def seconds_of(*command: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - begin


def worker_seconds(backend: str, folder: pathlib.Path) -> float:
    begin = time.perf_counter()
    with WorkerClient(SCRIPTED, folder.with_name("log")) as worker:
        loaded = worker.load(folder, backend, rows=2, context_length=512)
        assert isinstance(loaded, Loaded), loaded
        return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.start", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs: int = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as name:
        path = make_gguf(pathlib.Path(name) / "model.gguf", types="Q4_K_M")
        folders = {backend: converted_file(path, target=TARGETS[backend]) for backend in TARGETS}
        figures: dict[str, Callable[[], float]] = {
            "an empty interpreter": lambda: seconds_of("-c", "")
        }
        for backend, folder in folders.items():
            module = f"import backends.{backend}.loading"
            figures[f"{backend}: import"] = lambda module=module: seconds_of("-c", module)
            probe = f"backends.{backend}.probe"
            figures[f"{backend}: probe"] = lambda probe=probe: seconds_of("-m", probe)
            figures[f"{backend}: worker to loaded"] = lambda backend=backend, folder=folder: (
                worker_seconds(backend, folder)
            )
        figures["mlx-lm whole: import"] = lambda: seconds_of("-c", "import mlx_lm")
        seen = {label: list[float]() for label in figures}
        for _ in range(runs):
            for label, measure in figures.items():
                seen[label].append(measure())
    for label, values in seen.items():
        print(
            f"{label:24} {statistics.median(values):6.2f} s ({min(values):.2f} to {max(values):.2f})"
        )


if __name__ == "__main__":
    main()
