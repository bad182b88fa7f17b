"""Figures of the ONNX engine on a GPU: `python -m tests.bench.cuda --size 1.1B --types Q4_K_M`.

Wants onnxruntime-gpu in the environment and a driver; `--device cpu` runs the same on the CPU's own
artifact, for the ratio. Prints what the trials at the load said, prefill and decode rates for 1, 8
and 32 rows, and the share of the memory bandwidth that decoding one row reaches (bytes of weights
and states times tokens a second, over `--bandwidth` GB/s); where steps may be captured as CUDA
graphs, decode rates captured and not. For an architecture that gives vectors: texts a second.
`--architecture lfm2` or `qwen35` has row states, `--adapter` puts a low-rank adapter on, `--gguf`
takes a real file. `--check` instead loads a small model of every architecture and compares what
the device says with the CPU: the thing to run first on a new GPU.
"""

from __future__ import annotations

import argparse
import logging
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from backends.engine.contract import Engine
from backends.onnx import backend
from backends.onnx.device_steps import EAGER_STEPS
from backends.onnx.engine import OnnxEngine
from backends.types import EngineError, GenerateRequest, Load, Prefilled, Sampled, Sampling
from converters.artifact import Artifact, read_artifact
from converters.errors import ConversionError
from tests.models.random_adapter import make_adapter, random_matrices
from tests.models.random_architectures import ARCHITECTURES, ENCODERS
from tests.models.random_gguf import SIZES, make_gguf
from tests.parity.converted import adapted_file, converted_file

PROMPT, ANSWER, CONTEXT = 512, 64, 1024
ROWS = (1, 8, 32)
TEXTS, TEXT_IDS = 64, (16, 128, 512)
CHECKED_IDS = 16


def load(
    folder: pathlib.Path, device: str, cache: pathlib.Path, adapters: tuple[str, ...] = ()
) -> Engine:
    return backend.load(
        Load(
            request_id="l", backend="onnx", artifact=str(folder), device=device, rows=max(ROWS),
            context_length=CONTEXT, kv_bytes=16 << 30, cache_folder=str(cache), adapters=adapters,
        )
    )  # fmt: skip


# ---- decoders ----


def request(name: str, vocabulary: int, place: int) -> GenerateRequest:
    ids = tuple((place * 131 + 7 * n + n * n) % (vocabulary - 300) + 300 for n in range(PROMPT))
    # A seed keeps guesses out, so that a step is one id for every row.
    sampling = Sampling(temperature=0.0, seed=1)
    return GenerateRequest(
        request_id=name,
        prompt_ids=ids,
        max_tokens=ANSWER,
        sampling=sampling,
        context_length=CONTEXT,
    )


def measure(engine: Engine, rows: int, salt: int) -> tuple[float, float]:
    """(prefilled ids a second, sampled ids a second of all rows together, once they all decode)."""
    vocabulary = engine.capabilities.vocabulary
    for row in range(rows):
        engine.add(request(f"{salt}.{row}", vocabulary, salt * 100 + row))
    prefilling = 0.0
    steps: list[float] = []
    while engine.has_work():
        begin = time.perf_counter()
        events = engine.step()
        seconds = time.perf_counter() - begin
        ids = sum(isinstance(event, Sampled) for event in events)
        if any(isinstance(event, Prefilled) for event in events):
            prefilling += seconds
        elif ids == rows:
            steps.append(seconds)
    settled = steps[EAGER_STEPS + 1 :]  # before that, recordings are made
    return rows * PROMPT / prefilling, rows * len(settled) / sum(settled)


def capturing(engine: Engine) -> Iterator[str]:
    """Each way in which decode steps can run, set up; the last one is what the load chose."""
    steps = engine._graph.steps if isinstance(engine, OnnxEngine) and engine._graph else None
    if steps is None or not steps.may_capture:
        yield ""
        return
    chosen = steps.is_capturing
    for is_on in (not chosen, chosen):
        steps.forget()
        steps.is_capturing = is_on
        yield "captured" if is_on else "not captured"


def read_a_step(artifact: Artifact, device: str) -> int:
    """Bytes that a step for one row reads at least."""
    states = artifact.onnx.states if artifact.onnx else ()
    numbers = sum(int(np.prod(state.shape)) for state in states)
    return artifact.resident_bytes[device] + 4 * numbers


def print_decoder(engine: Engine, artifact: Artifact, device: str, bandwidth: float) -> None:
    measure(engine, 1, 0)  # warms the kernels
    salt = 0
    for way in capturing(engine):
        for rows in ROWS:
            if rows > engine.capabilities.rows:
                print(f"{rows:2} rows do not fit")
                continue
            salt += 1
            prefill, decode = measure(engine, rows, salt)
            share = ""
            if bandwidth and rows == 1:
                part = read_a_step(artifact, device) * decode / bandwidth / 1e9
                share = f", {part:.0%} of the bandwidth"
            said = f" {way}" if way else ""
            print(f"{rows:2} rows: prefill {prefill:.0f}/s, decode {decode:.1f}/s{said}{share}")


# ---- models that give vectors ----


def print_encoder(engine: Engine) -> None:
    limits = engine.capabilities
    for length in (one for one in TEXT_IDS if one <= limits.context_length):
        texts = [
            tuple((n * n + 7 * text) % (limits.vocabulary - 300) + 300 for n in range(length))
            for text in range(TEXTS)
        ]
        engine.embed(texts[:8])  # warms the kernels
        begin = time.perf_counter()
        engine.embed(texts)
        seconds = time.perf_counter() - begin
        print(f"texts of {length}: {TEXTS / seconds:.1f}/s, {TEXTS * length / seconds:.0f} ids/s")


# ---- every architecture ----


def answer(engine: Engine) -> list[Any]:
    """Ids of a greedy answer, or vectors of two texts."""
    ids = [(11 * place + 5) % 600 for place in range(40)]
    if not engine.capabilities.generate:
        return [np.frombuffer(one, "<f4") for one in engine.embed([tuple(ids), (7, 9)])]
    sampling = Sampling(temperature=0.0, seed=1)
    engine.add(
        GenerateRequest(
            request_id="r", prompt_ids=tuple(ids), max_tokens=CHECKED_IDS, sampling=sampling
        )
    )
    found: list[int] = []
    while engine.has_work():
        found += [event.token_id for event in engine.step() if isinstance(event, Sampled)]
    return found


def check(root: pathlib.Path, architecture: str, types: str, device: str) -> str:
    """What the device says of one small model, beside the CPU from the same artifact."""
    kv_heads = 4 if "bert" in architecture else 2
    path = make_gguf(
        root / f"{architecture}-{types}.gguf",
        architecture=architecture,
        types=types,
        kv_heads=kv_heads,
    )
    try:
        folder = converted_file(path, target="onnx-cuda")
        engine = load(folder, device, root / "cache")
        found, steps = answer(engine), engine.capabilities.steps
        engine.close()
    except (ConversionError, EngineError) as error:
        return f"REFUSED: {error}"
    host = load(folder, "cpu", root / "cache")
    expected = answer(host)
    if architecture in ENCODERS:
        apart = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
        return f"vectors differ by {apart:.1e} at most"
    same = next(
        (n for n, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b), len(expected)
    )
    return f"{same} of {len(expected)} ids as on the CPU; {steps}"


def check_all(root: pathlib.Path, device: str) -> None:
    for architecture in ARCHITECTURES:
        for types in ("Q8_0", "Q4_K") if architecture == "llama" else ("Q8_0",):
            print(f"{architecture} {types}: {check(root, architecture, types, device)}", flush=True)


# ---- the command ----


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="1.1B", choices=SIZES)
    parser.add_argument("--types", default="Q4_K_M")
    parser.add_argument("--architecture", default="llama", choices=ARCHITECTURES)
    parser.add_argument("--gguf", type=pathlib.Path, help="a file instead of a random model")
    parser.add_argument("--adapter", action="store_true", help="with a random adapter of rank 16")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--bandwidth", type=float, default=0.0, help="of the memory, in GB/s")
    parser.add_argument("--check", action="store_true", help="every architecture, small")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as place:
        root = pathlib.Path(place)
        if given.check:
            check_all(root, given.device)
            return
        source = given.gguf or make_gguf(
            root / "m.gguf", architecture=given.architecture, types=given.types, **SIZES[given.size]
        )
        if given.gguf:
            (root / "m.gguf").symlink_to(source.resolve())
            source = root / "m.gguf"
        folder = converted_file(source, target=f"onnx-{given.device}")
        adapters: tuple[str, ...] = ()
        if given.adapter:
            adapter = make_adapter(root / "a.gguf", source, random_matrices(source, rank=16))
            adapters = (str(adapted_file(adapter, source, folder, target=f"onnx-{given.device}")),)
        begin = time.perf_counter()
        engine = load(folder, given.device, root / "cache", adapters)
        print(f"load {time.perf_counter() - begin:.1f} s on {engine.capabilities.device}")
        if engine.capabilities.generate:
            print_decoder(engine, read_artifact(folder), given.device, given.bandwidth)
        else:
            print_encoder(engine)
        engine.close()


if __name__ == "__main__":
    main()
