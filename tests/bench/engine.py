"""Figures of an engine alone: `python -m tests.bench.engine rows second-turn gap guesses disk embed`.

In one process, on a random model of `--size`; a folder with an artifact can be given instead. Ratios
mean more than seconds where the machine is shared. `embed` is of ONNX Runtime only.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable

import msgspec

from backends.engine.contract import Engine, Rests
from backends.engine.pace import MIN_CHUNK
from backends.mlx import backend as mlx_backend
from backends.onnx import backend as onnx_backend
from backends.types import (
    GenerateRequest,
    Load,
    Prefilled,
    Sampled,
    Sampling,
)
from converters.artifact import MLX_CONFIG_FILE
from converters.convert import Request, convert
from converters.progress import Progress
from tests.models.random_gguf import SIZES, make_gguf

SMALL = {"blocks": 8, "embedding": 1024, "heads": 16, "kv_heads": 4, "feed_forward": 2816}
BERT = {"blocks": 6, "embedding": 384, "heads": 12, "kv_heads": 12, "feed_forward": 1536}
SHAPES = {**SIZES, "0.1B": {**SMALL, "vocabulary": 8000}}
BACKENDS = {"onnx": onnx_backend, "mlx": mlx_backend}
NEVER: frozenset[int] = frozenset()


def artifact_of(
    folder: pathlib.Path, architecture: str, types: str, target: str, /, **shape
) -> pathlib.Path:
    source = make_gguf(folder / "m.gguf", architecture=architecture, types=types, **shape)
    wanted = Request(source="0" * 64, target=target, final=folder / architecture)
    with source.open("rb") as file:
        convert(file, wanted, Progress())
    return wanted.final


def load(folder: pathlib.Path, rows: int = 16, context: int = 8192, **fields) -> Engine:
    name = "mlx" if (folder / MLX_CONFIG_FILE).exists() else "onnx"
    return BACKENDS[name].load(
        Load(
            request_id="l", backend=name, artifact=str(folder), rows=rows, context_length=context,
            kv_bytes=8 << 30, **fields,
        )
    )  # fmt: skip


def ask(name: str, ids: list[int], count: int, **sampling) -> GenerateRequest:
    return GenerateRequest(
        request_id=name,
        prompt_ids=tuple(ids),
        max_tokens=count,
        context_length=8192,
        sampling=Sampling(**sampling),
        end_ids=NEVER,
    )


def text(seed: int, length: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(10, 5000) for _ in range(length)]


def until(engine: Engine, is_enough: Callable[[], bool]) -> None:
    while engine.has_work() and not is_enough():
        engine.step()


def finish(engine: Engine) -> float:
    begin = time.perf_counter()
    until(engine, lambda: False)
    return time.perf_counter() - begin


def rows(folder: pathlib.Path) -> None:
    """Ids a second over all rows while nothing but decoding goes on."""
    engine, alone = load(folder), 0.0
    for count in (1, 2, 4, 8, 16):
        for n in range(count):
            engine.add(ask(f"r{n}", text(n, 16), 100, temperature=0.0, seed=1))
        started: set[str] = set()
        while len(started) < count:
            started |= {e.request_id for e in engine.step() if isinstance(e, Sampled)}
        begin, said = time.perf_counter(), 0
        while engine.has_work():
            said += sum(isinstance(event, Sampled) for event in engine.step())
        rate = said / (time.perf_counter() - begin)
        alone = alone or rate
        print(f"rows {count:2}: {rate:6.1f} tokens/s together, {rate / alone:.2f} times one row")


def second_turn(folder: pathlib.Path) -> None:
    engine, prompt = load(folder), text(1, 2000)
    seconds, said = first_token(engine, ask("a", prompt, 50, temperature=0.7))
    again, _ = first_token(engine, ask("b", [*prompt, *said, *text(2, 30)], 5, temperature=0.7))
    print(
        f"first token of a 2,000-token chat: {seconds:.3f} s; second turn with 30 new: {again:.3f} s, "
        f"{seconds / again:.0f} times sooner"
    )


def disk(folder: pathlib.Path) -> None:
    """The first token of a chat that another process has had before, with and without its files."""
    prompt = text(1, 2000)
    with tempfile.TemporaryDirectory() as cache:
        saving = {"cache_folder": cache, "prefix_cache_bytes": 8 << 30}
        engine = load(folder, **saving)
        cold, _ = first_token(engine, ask("a", prompt, 5, temperature=0.7))
        begin = time.perf_counter()
        while isinstance(engine, Rests) and engine.rest():
            pass
        writing = time.perf_counter() - begin
        size = sum(path.stat().st_size for path in pathlib.Path(cache).rglob("*.kv"))
        engine.close()
        warm, _ = first_token(load(folder, **saving), ask("b", prompt, 5, temperature=0.7))
    print(
        f"first token of 2,000 tokens in a new process: {cold:.3f} s computed, {warm:.3f} s read "
        f"back, {cold / warm:.1f} times sooner; {size >> 20} MiB written in {writing:.2f} s of pauses"
    )


def first_token(engine: Engine, request: GenerateRequest) -> tuple[float, list[int]]:
    engine.add(request)
    begin, seconds, said = time.perf_counter(), 0.0, []
    while engine.has_work():
        said += [event.token_id for event in engine.step() if isinstance(event, Sampled)]
        seconds = seconds or (time.perf_counter() - begin if said else 0.0)
    return seconds, said


def gap(folder: pathlib.Path) -> None:
    engine = load(folder)
    engine.add(ask("talking", text(1, 16), 7000, temperature=0.7))
    times: list[float] = []
    plain = paced(engine, times, lambda: len(times) > 30)
    engine.add(ask("long", text(2, 4000), 1, temperature=0.7))
    done = 0
    chunks: list[int] = []
    smallest: list[float] = []
    times.clear()
    while done < 4000:
        begin = time.perf_counter()
        for event in engine.step():
            if isinstance(event, Prefilled):
                chunks.append(event.done - done)
                done = event.done
                if chunks[-1] <= MIN_CHUNK:
                    smallest.append(time.perf_counter() - begin)
            elif isinstance(event, Sampled) and event.request_id == "talking":
                times.append(time.perf_counter())
    gaps = [late - early for early, late in itertools.pairwise(times)]
    print(
        f"gap of a decoding client while 4,000 tokens are prefilled: longest {max(gaps):.3f} s, "
        f"median {statistics.median(gaps):.3f} s (alone {plain:.3f} s); chunks {min(chunks)} to "
        f"{max(chunks)} ids, the slowest of {MIN_CHUNK}: {max(smallest, default=0):.3f} s"
    )


def paced(engine: Engine, times: list[float], is_enough: Callable[[], bool]) -> float:
    """Median seconds between two ids until it is enough; `times` are filled."""
    while not is_enough():
        events = [event for event in engine.step() if isinstance(event, Sampled)]
        times += [time.perf_counter()] * len(events)
    return statistics.median(b - a for a, b in itertools.pairwise(times))


class Dictation:
    """A constraint that leaves one id at a time: a random model says what it is told to."""

    def __init__(self, ids: list[int], vocabulary: int) -> None:
        self._ids = list(reversed(ids))
        self._size = -(-vocabulary // 8)

    def allowed(self) -> bytes:
        bits = bytearray(self._size)
        bits[self._ids[-1] >> 3] = 1 << (self._ids[-1] & 7)
        return bytes(bits)

    def accept(self, token_id: int) -> None:
        assert self._ids.pop() == token_id

    def limit(self, tokens: int) -> None:
        pass

    @property
    def forced(self) -> int:
        return 0


def guesses(folder: pathlib.Path) -> None:
    """The same dictated text with and without guesses: a seed turns them off.

    Repetitive: the prompt's page again, every 20th id another. Fresh: nothing of it was there.
    """
    page = text(3, 300)
    edited = [one if place % 20 else place + 11 for place, one in enumerate(page)]
    for kind, answer in (("repetitive", edited), ("fresh", text(4, 300))):
        rates: dict[str, list[float]] = {"plain": [], "guessing": []}
        for _ in range(5):
            for name, seed in (("plain", 7), ("guessing", None)):
                rates[name].append(dictated(load(folder, rows=1), page, answer, seed))
        plain, guessing = (statistics.median(found) for found in rates.values())
        ratios = [b / a for a, b in zip(rates["plain"], rates["guessing"], strict=True)]
        print(
            f"guesses on {kind} text: {guessing:.1f} beside {plain:.1f} tokens/s, "
            f"{statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def dictated(engine: Engine, page: list[int], answer: list[int], seed: int | None) -> float:
    """Ids a second of the answer alone."""
    request = ask("a", page, len(answer), temperature=0.0, seed=seed)
    constraint = Dictation([*answer, 0], engine.capabilities.vocabulary)
    engine.add(msgspec.structs.replace(request, constraint=constraint))
    while not any(isinstance(event, Sampled) for event in engine.step()):
        pass
    rate = (len(answer) - 1) / finish(engine)
    engine.close()
    return rate


def embed(folder: pathlib.Path) -> None:
    encoder = load(artifact_of(folder, "bert", "Q8_0", "onnx-cpu", vocabulary=30522, **BERT))
    texts = [tuple(text(n, random.Random(n).randrange(8, 40))) for n in range(64)]
    encoder.embed(texts)
    begin = time.perf_counter()
    encoder.embed(texts)
    together = 64 / (time.perf_counter() - begin)
    begin = time.perf_counter()
    for ids in texts:
        encoder.embed([ids])
    alone = 64 / (time.perf_counter() - begin)
    print(f"64 sentences on bert 6 x 384: {together:.0f}/s in a batch, {alone:.0f}/s one by one")


PARTS = {
    "rows": rows,
    "second-turn": second_turn,
    "gap": gap,
    "guesses": guesses,
    "disk": disk,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.engine", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", help="which figures (all): " + ", ".join([*PARTS, "embed"])
    )
    parser.add_argument("--size", choices=sorted(SHAPES), default="0.1B")
    parser.add_argument("--types", default="Q4_K_M")
    parser.add_argument("--target", choices=("onnx-cpu", "mlx"), default="onnx-cpu")
    parser.add_argument("--artifact", type=pathlib.Path, help="instead of a random model")
    arguments = parser.parse_args()
    wanted = arguments.parts or [*PARTS, "embed"]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        made = arguments.artifact
        if made is None and set(wanted) & set(PARTS):
            shape = {**SHAPES[arguments.size], "context": 8192}
            made = artifact_of(folder, "llama", arguments.types, arguments.target, **shape)
        for part in wanted:
            if part == "embed":
                embed(folder)
            elif made is not None:
                PARTS[part](made)


if __name__ == "__main__":
    main()
