"""Prefill and decode of Gated DeltaNets on ONNX Runtime beside attention and beside llama.cpp.

`python -m tests.bench.delta_net [--blocks 8]`: qwen35 and qwen3 of the same width, Q4_0, one row,
prefill of 512 ids and 48 decoded ones, alternating with llama.cpp. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
import time

import numpy as np

from backends.onnx import backend
from backends.types import GenerateRequest, Load, Sampled, Sampling
from tests.models import random_mixtures
from tests.models.random_gguf import make_gguf
from tests.models.reference import LlamaCpp
from tests.parity.converted import converted_file

PROMPT, COUNT, CONTEXT, THREADS = 512, 48, 1024, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    # The heads of Qwen 3.5 2B.
    random_mixtures.DELTA_KEY_HEADS = random_mixtures.DELTA_VALUE_HEADS = 16
    random_mixtures.DELTA_SIZE = 128
    with tempfile.TemporaryDirectory() as folder:
        for architecture in ("qwen3", "qwen35"):
            path = made(pathlib.Path(folder), architecture, arguments.blocks)
            artifact = converted_file(path)
            for _ in range(arguments.rounds):
                for name, rates in (("ONNX", onnx(artifact)), ("llama.cpp", llama_cpp(path))):
                    print(
                        f"{architecture} {name}: prefill {rates[0]:.0f}, decode {rates[1]:.0f} ids/s"
                    )


def made(folder: pathlib.Path, architecture: str, blocks: int) -> pathlib.Path:
    return make_gguf(
        folder / f"{architecture}.gguf",
        architecture=architecture,
        types="Q4_0",
        blocks=blocks,
        embedding=2048,
        heads=16,
        kv_heads=4,
        feed_forward=6144,
        context=CONTEXT,
    )


def prompt_ids() -> list[int]:
    return [int(one) for one in np.random.default_rng(2).integers(300, 690, PROMPT)]


def onnx(artifact: pathlib.Path) -> tuple[float, float]:
    engine = backend.load(
        Load(
            request_id="l",
            backend="onnx",
            artifact=str(artifact),
            rows=1,
            context_length=CONTEXT,
            threads=THREADS,
        )
    )
    engine.add(
        GenerateRequest(
            request_id="a",
            prompt_ids=tuple(prompt_ids()),
            max_tokens=COUNT,
            sampling=Sampling(temperature=0.0),
        )
    )
    begin, times = time.perf_counter(), list[float]()
    while engine.has_work():
        events = engine.step()
        times += [time.perf_counter() for event in events if isinstance(event, Sampled)]
    engine.close()
    return PROMPT / (times[0] - begin), (len(times) - 1) / (times[-1] - times[0])


def llama_cpp(path: pathlib.Path) -> tuple[float, float]:
    with LlamaCpp(path, context=CONTEXT, threads=THREADS) as model:
        return model.rates(prompt_ids(), COUNT)


if __name__ == "__main__":
    main()
