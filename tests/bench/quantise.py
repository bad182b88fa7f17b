"""Figures of the quantisers beside llama.cpp's: `python -m tests.bench.quantise [TYPE …]`.

MB of fp32 weights a second of one thread, interleaved with llama.cpp's own function on the same rows;
the ratio of the errors on rows of several kinds; and, with `--file`, the whole command on a random
F16 model: seconds, MB of source a second on every core, peak memory.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

from converters.quantise import ENCODERS
from converters.quantise.encoder import Bytes, Floats
from converters.quantise.quantise import PASS_WEIGHTS
from tests.bench.__main__ import MEBIBYTE, PeakMemory
from tests.converters.quantise.test_encoders import (
    QUANTISED,
    SHAPES,
    drawn,
    ours,
    rms_error,
    theirs,
)
from tests.models.random_gguf import SIZES, make_gguf

ROUNDS = 5


def seconds(run: Callable[[], object]) -> float:
    """Of this thread, so that a busy machine disturbs less."""
    begin = time.thread_time()
    run()
    return time.thread_time() - begin


def passes(weights: Floats, name: str) -> list[Bytes]:
    blocks = weights.reshape(-1, ENCODERS[name].block_size)
    step = PASS_WEIGHTS // ENCODERS[name].block_size
    return [ENCODERS[name].encode(blocks[at : at + step]) for at in range(0, len(blocks), step)]


def compare(name: str) -> None:
    weights = np.concatenate([drawn("gaussian")] * 4)
    taken = [
        (seconds(lambda: passes(weights, name)), seconds(lambda: theirs(weights, name)))
        for _ in range(ROUNDS)
    ]
    our_seconds, their_seconds = (min(column) for column in zip(*taken, strict=True))
    megabytes = weights.nbytes / 1e6
    ratios: list[str] = []
    for shape in SHAPES:
        rows = drawn(shape)
        ratio = rms_error(rows, ours(rows, name), name) / rms_error(rows, theirs(rows, name), name)
        ratios.append(f"{shape} {ratio:.4f}")
    print(
        f"{name:5} {megabytes / our_seconds:5.0f} MB/s, llama.cpp {megabytes / their_seconds:5.0f}"
        f" MB/s, one thread; error over llama.cpp's: {', '.join(ratios)}",
        flush=True,
    )


def whole_file(file_type: str, size: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = make_gguf(pathlib.Path(folder, "source.gguf"), types="F16", **SIZES[size])
        command = [sys.executable, "-m", "converters", "quantise", "--input", str(source)]
        command += ["--output", f"{folder}/result", "--type", file_type]
        begin = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
            peak = PeakMemory(child.pid)
        peak.join()
        took = time.monotonic() - begin
        megabytes = source.stat().st_size / 1e6
        print(
            f"{size} F16 to {file_type}: {took:.1f} s, {megabytes / took:.0f} MB/s of source,"
            f" peak {peak.resident_bytes / MEBIBYTE:.0f} MiB, exit code {child.returncode}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.quantise")
    parser.add_argument("types", nargs="*", default=QUANTISED, help="GGML types")
    parser.add_argument("--file", metavar="FILE_TYPE", help="such as Q4_K_M")
    parser.add_argument("--size", default="1.1B", choices=SIZES)
    arguments = parser.parse_args()
    if arguments.file:
        whole_file(arguments.file, arguments.size)
        return
    for name in arguments.types:
        compare(name)


if __name__ == "__main__":
    main()
