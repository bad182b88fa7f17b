"""`make fuzz ARGS="--seconds 600"`: mutated GGUF headers through reader, plan and inspection.

Every input must end in an answer or in the converter's own error, quickly and without taking
memory. A finding is written to a file, printed with its seed, and fails the run.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import struct
import tempfile
import time
import tracemalloc

from converters.errors import ConversionError
from converters.gguf import parse_header
from converters.inspector import describe
from converters.plan import assess
from tests.models.random_gguf import make_gguf

SLOW_SECONDS = 5.0
MEMORY_BYTES = 256 << 20
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def seeds(folder: pathlib.Path) -> list[bytes]:
    """The heads of a few good files: everything before the tensor data, and a little of it."""
    heads: list[bytes] = []
    for n, (types, tokenizer) in enumerate(
        (("Q4_K_M", "llama"), ("Q8_0", "gpt2"), ("F32", "llama"))
    ):
        path = make_gguf(folder / f"{n}.gguf", types=types, tokenizer=tokenizer, blocks=1)
        heads.append(path.read_bytes()[:60_000])
    return heads


def mutate(data: bytes, draw: random.Random) -> bytes:
    mutated = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(len(mutated) - 8)
        if draw.random() < 0.5:
            at = draw.randrange(min(2000, len(mutated) - 8))
        match draw.randrange(5):
            case 0:
                mutated[at] = draw.randrange(256)
            case 1:
                mutated[at : at + 8] = struct.pack("<Q", draw.choice(INTERESTING))
            case 2:
                mutated[at : at + 4] = struct.pack("<I", draw.choice(INTERESTING) & 0xFFFFFFFF)
            case 3:
                del mutated[at : at + draw.randrange(64)]
            case _:
                end = at + draw.randrange(64)
                mutated[at:at] = mutated[at:end]
        if len(mutated) < 16:
            break
    return bytes(mutated)


def execute(data: bytes) -> str:
    """How it ended: "accepted" or the name of the converter's own error."""
    try:
        header = parse_header(data, size=max(len(data), 4 << 20))
        assess(header)
        describe(header, "0" * 64)
    except ConversionError as error:
        if not str(error):
            raise AssertionError("an error without a word") from error
        return type(error).__name__
    return "accepted"


def main() -> None:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    counts: dict[str, int] = {}
    findings = 0
    with tempfile.TemporaryDirectory() as folder:
        heads = seeds(pathlib.Path(folder))
    until = time.monotonic() + arguments.seconds
    while time.monotonic() < until:
        data = mutate(draw.choice(heads), draw)
        begin = time.monotonic()
        tracemalloc.start()
        try:
            outcome = execute(data)
        except Exception as error:  # noqa: BLE001  # anything else is a finding
            outcome = f"FINDING {type(error).__name__}: {error}"
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if peak > MEMORY_BYTES or time.monotonic() - begin > SLOW_SECONDS:
            outcome = f"FINDING {peak} bytes, {time.monotonic() - begin:.1f} s"
        if outcome.startswith("FINDING"):
            findings += 1
            report(data, outcome, arguments.seed)
        counts[outcome] = counts.get(outcome, 0) + 1
    print(f"seed {arguments.seed}: {sum(counts.values())} executions, {counts}")
    raise SystemExit(bool(findings))


def report(data: bytes, outcome: str, seed: int) -> None:
    with tempfile.NamedTemporaryFile("wb", suffix=".gguf", delete=False) as file:
        file.write(data)
    print(f"{outcome}; seed {seed}; kept as {file.name}")


if __name__ == "__main__":
    main()
