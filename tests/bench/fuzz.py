"""`make fuzz ARGS="--seconds 600"`: headers through reader, plan, inspection and tokenizer, by coverage.

libFuzzer keeps every input that reaches a new branch of `converters` and mutates it further; half of the
mutations know where a header's numbers are. An input that begins as a GGUF goes through all that reads
GGUF, any other through the reader of safetensors. Each must end in an answer or in the converter's own
error, within seconds and without taking memory; anything else is a finding: its input is written to
`--findings`, and the run fails. `--corpus` keeps what was reached for the next run.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import random
import struct
import sys
import tempfile

import atheris  # pyright: ignore[reportMissingImports]  # of the extra `fuzz`

with atheris.instrument_imports(include=["converters"]):  # pyright: ignore[reportAttributeAccessIssue]
    from converters.architectures.library import library_form
    from converters.errors import ConversionError
    from converters.gguf import parse_header
    from converters.imports.safetensors import read_tensors
    from converters.inspector import describe
    from converters.plan import assess, plan
    from converters.tokenizer import build_tokenizer

from tests.models.random_architectures import ARCHITECTURES
from tests.models.random_gguf import make_gguf

SLOW_SECONDS = 10
RESIDENT_MEBIBYTES = 1024
LONGEST_INPUT = 32_000
# What a header may claim of the file behind it.
FILE_BYTES = 4 << 20
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
# The keys of another kind of tokenizer over the same tokens: enough to reach its reader.
KINDS = {"bert": "bert", "nomic-bert": "t5"}
SAFETENSORS = (
    b'{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},'
    b'"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[4],"data_offsets":[16,24]}}'
)


def seeds(folder: pathlib.Path) -> None:
    """The heads of small good files of every kind: everything before the tensor data."""
    for architecture in ARCHITECTURES:
        kind = KINDS.get(architecture)
        path = make_gguf(
            folder / "model.gguf",
            architecture=architecture,
            types="Q8_0",
            tokenizer="gpt2" if architecture == "qwen2" else "llama",
            blocks=4 if architecture in ("afmoe", "smollm3") else 2,
            vocabulary=600,
            metadata={"tokenizer.ggml.model": kind} if kind else None,
        )
        (folder / architecture).write_bytes(path.read_bytes()[:LONGEST_INPUT])
        path.unlink()
    (folder / "safetensors").write_bytes(
        struct.pack("<Q", len(SAFETENSORS)) + SAFETENSORS + bytes(24)
    )


def mutate(data: bytes, longest: int, seed: int) -> bytes:
    """libFuzzer's own mutation, or one that puts a number or a copy where it may matter."""
    draw = random.Random(seed)
    if len(data) < 16 or draw.random() < 0.5:
        return atheris.Mutate(data, longest)
    mutated = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(min(draw.choice((64, 2000, LONGEST_INPUT)), len(mutated) - 8))
        match draw.randrange(4):
            case 0:
                mutated[at : at + 8] = struct.pack("<Q", draw.choice(INTERESTING))
            case 1:
                mutated[at : at + 4] = struct.pack("<I", draw.choice(INTERESTING) & 0xFFFFFFFF)
            case 2:
                mutated[at : at + 4] = struct.pack("<I", draw.randrange(16))
            case _:
                end = at + draw.randrange(64)
                mutated[at:at] = mutated[at:end]
    return bytes(mutated[:longest])


def execute(data: bytes) -> None:
    """Raises only what is a finding."""
    if data[:4] == b"GGUF":
        execute_gguf(data)
    else:
        execute_safetensors(data)


def execute_gguf(data: bytes) -> None:
    try:
        header = parse_header(data, size=max(len(data), FILE_BYTES))
    except ConversionError as error:
        require_words(error)
        return
    for work in (
        lambda: assess(header),
        lambda: describe(header, "0" * 64),
        lambda: plan(library_form(header), "onnx-cpu", precise=True),
        lambda: build_tokenizer(library_form(header).metadata),
    ):
        try:
            work()
        except ConversionError as error:
            require_words(error)


def execute_safetensors(data: bytes) -> None:
    descriptor = os.memfd_create("input")
    try:
        os.write(descriptor, data)
        read_tensors(descriptor, "model.safetensors")
    except ConversionError as error:
        require_words(error)
    finally:
        os.close(descriptor)


def require_words(error: ConversionError) -> None:
    if not str(error):
        raise AssertionError("an error without a word") from error


def main() -> None:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0, help="0: another one every time")
    parser.add_argument("--corpus", type=pathlib.Path)
    parser.add_argument(
        "--findings", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir())
    )
    parser.add_argument("inputs", nargs="*", help="run these files once instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folders = [str(options.corpus)] if options.corpus else []
        if not options.inputs:
            seeds(pathlib.Path(name))
            folders.append(name)
        limits = [f"-timeout={SLOW_SECONDS}", f"-rss_limit_mb={RESIDENT_MEBIBYTES}"]
        limits += [f"-max_len={LONGEST_INPUT}", f"-max_total_time={options.seconds}"]
        limits += [f"-seed={options.seed}", f"-artifact_prefix={options.findings}/finding-"]
        command = [sys.argv[0], *limits, "-print_final_stats=1", *(options.inputs or folders)]
        atheris.Setup(command, execute, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
