"""What an adapter costs: `python -m tests.bench.adapters --size 0.1B --types Q4_K --rank 16`.

Decode and prefill rates with and without one that stands beside every matrix, on both backends, taken
in turns in one process and on one thread; and what loading each takes of memory.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import tempfile
import time

import psutil

from backends import mlx, onnx
from backends.engine.contract import Backend, Engine
from backends.types import Load, Sampled
from converters.artifact import read_adapter
from tests.bench.engine import SHAPES, ask, text
from tests.models.random_adapter import make_adapter, random_matrices
from tests.models.random_gguf import make_gguf
from tests.parity.converted import adapted_file, converted_file

BACKENDS: dict[str, Backend] = {"onnx-cpu": onnx.backend, "mlx": mlx.backend}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="0.1B", choices=SHAPES)
    parser.add_argument("--types", default="Q4_K")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--targets", nargs="+", default=list(BACKENDS), choices=BACKENDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        base = make_gguf(folder / "base.gguf", types=options.types, **SHAPES[options.size])
        adapter = make_adapter(
            folder / "lora.gguf", base, random_matrices(base, rank=options.rank, std=0.01)
        )
        for target in options.targets:
            compare(base, adapter, target, options)


def compare(
    base: pathlib.Path, adapter: pathlib.Path, target: str, options: argparse.Namespace
) -> None:
    folder = converted_file(base, target=target)
    begin = time.monotonic()
    adapted = adapted_file(adapter, base, folder, target=target)
    seconds = time.monotonic() - begin
    described = read_adapter(adapted, folder)
    process = psutil.Process()
    engines: dict[str, Engine] = {}
    for label, adapters in (("plain", ()), ("adapted", (str(adapted),))):
        before = process.memory_info().rss
        load = Load(
            request_id="l", backend=BACKENDS[target].name, artifact=str(folder),
            adapters=adapters, rows=1, context_length=1024, kv_bytes=1 << 30,
            threads=1,
        )  # fmt: skip
        engines[label] = BACKENDS[target].load(load)
        grown = process.memory_info().rss - before
        print(f"{target} {label}: loading takes {grown / 1e6:.0f} MB of memory")
    print(f"{target}: adapter of {described.file_bytes / 1e6:.1f} MB made in {seconds:.1f} s")
    rates: dict[str, list[tuple[float, float]]] = {label: [] for label in engines}
    for turn in range(options.rounds):
        for label, engine in engines.items():
            rates[label].append(measured(engine, turn, options.prompt, options.count))
    for place, what in enumerate(("prefill", "decode")):
        plain, with_adapter = (max(each[place] for each in rates[label]) for label in engines)
        pairs = zip(rates["adapted"], rates["plain"], strict=True)
        ratio = statistics.median(one[place] / other[place] for one, other in pairs)
        print(
            f"{target} {what}: best {plain:.1f} tokens a CPU second, with the adapter"
            f" {with_adapter:.1f}; median of the turns' ratios {ratio:.3f}"
        )


def measured(engine: Engine, seed: int, prompt: int, count: int) -> tuple[float, float]:
    """(prefill, decode) in tokens a second of CPU time, of a prompt that is in no cache.

    With a seed nothing is guessed. CPU time, as the machine may be shared.
    """
    engine.add(ask("a", text(seed, prompt), count, temperature=1.0, seed=seed + 1))
    begin = first = time.process_time()
    sampled = 0
    while engine.has_work():
        for event in engine.step():
            if isinstance(event, Sampled):
                first = time.process_time() if not sampled else first
                sampled += 1
    end = time.process_time()
    return prompt / (first - begin), (sampled - 1) / (end - first)


if __name__ == "__main__":
    main()
