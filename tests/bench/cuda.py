"""Figures of the ONNX engine on a GPU: `python -m tests.bench.cuda --size 1.1B --types Q4_K_M`.

Wants onnxruntime-gpu in the environment and a driver. Prints prefill and decode rates for 1, 8 and 32
rows, the share of the memory bandwidth that decoding alone reaches (bytes of the weights times
tokens a second, over `--bandwidth` GB/s), and what the self-test found. `--device cpu` runs the same on
the CPU's own artifact, for the ratio.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
import time

from backends.engine.contract import Engine
from backends.onnx import backend
from backends.types import GenerateRequest, Load, Prefilled, Sampled, Sampling
from converters.artifact import read_artifact
from tests.models.random_gguf import SIZES, make_gguf
from tests.parity.converted import converted_file

PROMPT, ANSWER = 512, 64
ROWS = (1, 8, 32)


def load(folder: pathlib.Path, device: str, cache: pathlib.Path) -> Engine:
    return backend.load(
        Load(
            request_id="l", backend="onnx", artifact=str(folder), device=device, rows=max(ROWS),
            context_length=1024, kv_bytes=16 << 30, cache_folder=str(cache),
        )
    )  # fmt: skip


def request(name: str, vocabulary: int, place: int) -> GenerateRequest:
    ids = tuple((place * 131 + 7 * n + n * n) % (vocabulary - 300) + 300 for n in range(PROMPT))
    # A seed keeps guesses out, so that a step is one id for every row.
    sampling = Sampling(temperature=0.0, seed=1)
    return GenerateRequest(
        request_id=name, prompt_ids=ids, max_tokens=ANSWER, sampling=sampling, context_length=1024
    )


def measure(engine: Engine, rows: int, salt: int) -> tuple[float, float]:
    """(prefilled ids a second, sampled ids a second of all rows together)."""
    vocabulary = engine.capabilities.vocabulary
    for row in range(rows):
        engine.add(request(f"{salt}.{row}", vocabulary, salt * 100 + row))
    prefilling = decoding = 0.0
    sampled = prefilled = 0
    while engine.has_work():
        begin = time.perf_counter()
        events = engine.step()
        seconds = time.perf_counter() - begin
        ids = sum(isinstance(event, Sampled) for event in events)
        if any(isinstance(event, Prefilled) for event in events):
            prefilling += seconds
        elif ids:
            decoding, sampled = decoding + seconds, sampled + ids
    prefilled = rows * PROMPT
    return prefilled / prefilling, sampled / decoding


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="1.1B", choices=SIZES)
    parser.add_argument("--types", default="Q4_K_M")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--bandwidth", type=float, default=0.0, help="of the memory, in GB/s")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = pathlib.Path(place)
        source = make_gguf(root / "m.gguf", types=given.types, **SIZES[given.size])
        folder = converted_file(source, target=f"onnx-{given.device}")
        begin = time.perf_counter()
        engine = load(folder, given.device, root / "cache")
        print(f"load {time.perf_counter() - begin:.1f} s on {engine.capabilities.device}")
        measure(engine, 1, 0)  # warms the kernels
        weights = read_artifact(folder).resident_bytes[given.device]
        for number, rows in enumerate(ROWS, 1):
            prefill, decode = measure(engine, min(rows, engine.capabilities.rows), number)
            share = ""
            if given.bandwidth and rows == 1:
                share = f", {weights * decode / given.bandwidth / 1e9:.0%} of the bandwidth"
            print(f"{rows:2} rows: prefill {prefill:.0f}/s, decode {decode:.1f}/s{share}")
        engine.close()


if __name__ == "__main__":
    main()
