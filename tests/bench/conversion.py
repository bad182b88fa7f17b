"""Figures of the converter alone: `python -m tests.bench.conversion --types Q4_K Q8_0 --runs 3`.

One line per block type, model and target: MB of GGUF a second of wall time and of CPU time, how much of the
time the last sync took, the most memory of all its processes, and the seconds of a plain copy of as many
bytes: fresh pages cost some machines more than the conversion. `--experts` makes models whose weights are experts,
`--sizes` compares 1.1B with four times as much. `--against FOLDER` runs another checkout's converter in turn
with this one's and says the ratio and whether the artifacts' weights are the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from tests.bench.__main__ import MEBIBYTE, PeakMemory
from tests.models.block_quantiser import block_bytes, block_size
from tests.models.random_gguf import SIZES, make_gguf
from tests.models.random_mixtures import EXPERTS

HERE = pathlib.Path(__file__).resolve().parents[2]
TARGETS = ("onnx-cpu", "mlx")
WEIGHTS_FILES = ("weights.bin", "model.safetensors")
COMMON = ("Q4_0", "Q8_0", "Q4_K", "Q6_K")
OTHERS = (
    "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q5_K", "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_XXS",
    "IQ2_XS", "IQ2_S", "IQ1_S", "IQ1_M", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "F16", "BF16", "F32",
)  # fmt: skip
# In whole blocks of 256.
EMBEDDING, FEED_FORWARD, EXPERT_FEED_FORWARD = 2048, 5632, 4096


class Figures(NamedTuple):
    seconds: float
    cpu_seconds: float
    sync_seconds: float
    peak_bytes: int
    artifact_bytes: int
    digest: str


def copy_seconds(source: pathlib.Path, nbytes: int) -> float:
    """What the machine asks for alone: the source read and so many bytes written and synced."""
    target, step = source.with_name("copy"), 4 << 20
    begin = time.monotonic()
    with source.open("rb") as read, target.open("wb", buffering=0) as written:
        for start in range(0, nbytes, step):
            data = read.read(step) or bytes(step)
            written.write(data[: min(step, nbytes - start)])
        os.fsync(written.fileno())
    seconds = time.monotonic() - begin
    target.unlink()
    return seconds


def run(checkout: pathlib.Path, source: pathlib.Path, target: str, output: pathlib.Path) -> Figures:
    """One conversion in a process of its own, as the daemon starts it; its artifact is removed."""
    command = [sys.executable, "-m", "converters", "convert", "--input", str(source)]
    command += ["--source", "0" * 64, "--target", target, "--output", str(output)]
    begin = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=checkout) as child:
        peak = PeakMemory(child.pid)
        assert child.stdout is not None
        sync_seconds = _sync_seconds(child.stdout)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - begin
    peak.join()
    if child.returncode:
        raise SystemExit(f"the converter ended with {child.returncode}")
    weights = next(output / name for name in WEIGHTS_FILES if (output / name).exists())
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    artifact_bytes = sum(file.stat().st_size for file in output.iterdir())
    shutil.rmtree(output)
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Figures(seconds, cpu_seconds, sync_seconds, peak.resident_bytes, artifact_bytes, digest)


def _sync_seconds(lines) -> float:
    """From the converter's own progress: how long its phase "sync" was."""
    begin = end = 0.0
    for line in lines:
        told = json.loads(line)
        if told.get("phase") == "sync":
            end = time.monotonic()
            begin = begin or end
        elif "error" in told:
            print(told["error"])
    return end - begin


def compare(
    name: str, source: pathlib.Path, targets: list[str], runs: int, against: pathlib.Path | None
) -> None:
    """Prints the median of `runs` conversions for each target."""
    megabytes = source.stat().st_size / 1e6
    for target in targets:
        ours: list[Figures] = []
        theirs: list[Figures] = []
        copies: list[float] = []
        for _ in range(runs):
            if against:
                theirs.append(run(against, source, target, source.with_name("artifact")))
            ours.append(run(HERE, source, target, source.with_name("artifact")))
            copies.append(copy_seconds(source, ours[-1].artifact_bytes))
        line = f"{_line(ours, megabytes)}; a copy {statistics.median(copies):4.1f} s"
        print(f"{name:12} {target:8} {line}{_ratio(ours, theirs)}", flush=True)


def _line(figures: list[Figures], megabytes: float) -> str:
    seconds = statistics.median(each.seconds for each in figures)
    cpu_seconds = statistics.median(each.cpu_seconds for each in figures)
    sync_seconds = statistics.median(each.sync_seconds for each in figures)
    peak_bytes = max(each.peak_bytes for each in figures)
    return (
        f"{megabytes:6.0f} MB to {figures[0].artifact_bytes / 1e6:6.0f}: {megabytes / seconds:5.0f} MB/s,"
        f" {megabytes / cpu_seconds:5.0f} MB per CPU second, {cpu_seconds:5.1f} CPU s of {seconds:5.1f} s,"
        f" sync {sync_seconds:4.1f} s, peak {peak_bytes / MEBIBYTE:4.0f} MiB"
    )


def _ratio(ours: list[Figures], theirs: list[Figures]) -> str:
    if not theirs:
        return ""
    wall, cpu = (
        statistics.median(getattr(each, field) for each in theirs)
        / statistics.median(getattr(each, field) for each in ours)
        for field in ("seconds", "cpu_seconds")
    )
    is_same = len({each.digest for each in ours + theirs}) == 1
    return f"; {wall:.2f}x wall, {cpu:.2f}x CPU, {'same' if is_same else 'OTHER'} weights"


def single_type(folder: pathlib.Path, types: str, megabytes: int, *, experts: bool) -> pathlib.Path:
    """A model of that one type, near that size; experts make up nearly all of it if asked."""
    feed_forward = EXPERT_FEED_FORWARD if experts else FEED_FORWARD
    rows = EXPERTS * feed_forward // 2 if experts else feed_forward
    weights = EMBEDDING * (3 * rows + 2 * EMBEDDING + 512)
    per_block = weights // block_size(types) * block_bytes(types)
    path = folder / "model.gguf"
    path.unlink(missing_ok=True)
    return make_gguf(
        path,
        architecture="qwen3moe" if experts else "llama",
        types=types,
        blocks=max(1, round(megabytes * 1e6 / per_block)),
        embedding=EMBEDDING,
        heads=32,
        kv_heads=4,
        feed_forward=feed_forward,
        vocabulary=2000,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.conversion", description=__doc__)
    parser.add_argument("--types", nargs="*", default=[*COMMON, *OTHERS])
    parser.add_argument("--experts", action="store_true", help="models of experts of these types")
    parser.add_argument("--sizes", action="store_true", help="1.1B as Q4_K_M, and 4 times its size")
    parser.add_argument("--targets", nargs="*", default=TARGETS, choices=TARGETS)
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--folder", type=pathlib.Path, help="for models and artifacts; /tmp's disk else"
    )
    parser.add_argument("--against", type=pathlib.Path, metavar="CHECKOUT")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = pathlib.Path(name)
        if options.sizes:
            for times in (1, 4):
                size = SIZES["1.1B"].copy()
                size["blocks"] *= times
                source = make_gguf(folder / f"{times}.gguf", types="Q4_K_M", **size)
                compare(f"1.1B x {times}", source, options.targets, options.runs, options.against)
            return
        for types in options.types:
            source = single_type(folder, types, options.megabytes, experts=options.experts)
            compare(types, source, options.targets, options.runs, options.against)


if __name__ == "__main__":
    main()
