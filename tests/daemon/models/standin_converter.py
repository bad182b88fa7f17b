"""A converter that obeys its input: the text after `GGUF` is a JSON object saying what to do.

Run by file name in place of `python -m converters`. It stages, prints and fails as that one does,
at moments that a test can choose.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import sys
import time

import msgspec

from converters.artifact import (
    ARTIFACT_FORMAT,
    MADE_GGUF,
    MADE_NOTES,
    Artifact,
    CodedTable,
    OnnxGraph,
    TensorRecord,
    variant_folder,
)
from converters.inspection import Inspection, TensorSummary
from converters.vision_artifact import VISION_FILE, ImageForm, VisionArtifact, vision_folder

CODES = {"internal": 1, "malformed": 2, "unsupported": 3, "space": 4}


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def fail(kind: str) -> None:
    say(error=f"the stand-in says {kind}", kind=kind)
    sys.exit(CODES[kind])


def artifact(source: str, target: str) -> Artifact:
    kept = TensorRecord(name="t", source_type="Q8_0", shape=(2, 2), exactness="exact", form="f")
    return Artifact(
        format=ARTIFACT_FORMAT, converter=1, source=source, variant=variant_folder(target),
        architecture="llama", block_count=1, embedding_length=4, heads=1, kv_heads=(1,), head_size=4,
        vocabulary=8, context_length=64, kv_bytes_per_token=8, file_bytes=1234, tensors=(kept,),
        onnx=OnnxGraph(embedding=CodedTable(rows=1, columns=1, bits=32, codes_offset=0)),
    )  # fmt: skip


def tower(source: str, target: str) -> VisionArtifact:
    return VisionArtifact(
        format=ARTIFACT_FORMAT, converter=1, source=source, variant=vision_folder(target),
        form=ImageForm(projector="gemma3", patch_size=14), width=4,
        file_bytes=555, resident_bytes={"cpu": 700, "cuda": 800}, run_bytes=90,
    )  # fmt: skip


FILES = {artifact: "artifact.json", tower: VISION_FILE}


def quantise(options: argparse.Namespace, wanted: dict[str, object]) -> None:
    """What is made is a file that the stand-in obeys as well, by the wishes under `then_made`."""
    final: pathlib.Path = options.output
    final.parent.mkdir(parents=True, exist_ok=True)
    staging = final.with_name(f"{final.name}.staging-{os.getpid()}")
    staging.mkdir()
    made = {"types": "Q4_K", "file_type": options.type, **dict(wanted.get("then_made") or {})}  # pyright: ignore
    (staging / MADE_GGUF).write_bytes(b"GGUF" + json.dumps(made).encode())
    (staging / MADE_NOTES).write_text(json.dumps(wanted.get("notes", [])))
    for step in range(steps := int(str(wanted.get("steps", 3)))):
        say(phase="write", done=step + 1, total=steps)
        time.sleep(float(str(wanted.get("seconds", 0.01))))
    if wanted.get("then") == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    staging.rename(final)
    say(done=True, file_bytes=1234)


def convert(options: argparse.Namespace, wanted: dict[str, object]) -> None:
    final: pathlib.Path = options.output
    note(final.parent.parent / "runs", f"{options.source} {os.getpid()}\n")
    staging = final.with_name(f"{final.name}.staging-{os.getpid()}")
    staging.mkdir()
    say(phase="plan", done=0, total=0)
    steps = int(str(wanted.get("steps", 3)))
    for step in range(steps):
        (staging / "weights.bin").write_bytes(b"w" * (step + 1))
        say(phase="write", done=step + 1, total=steps)
        time.sleep(float(str(wanted.get("seconds", 0.01))))
    match wanted.get("then"):
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "leave":
            print("no last word", file=sys.stderr)
            sys.exit(9)
        case "babble":
            sys.stdout.write("x" * (3 << 20))
            sys.stdout.flush()
        case "nothing":
            shutil.rmtree(staging)
        case _:
            made = tower if options.command == "vision" else artifact
            data = msgspec.json.encode(made(options.source, options.target))
            (staging / FILES[made]).write_bytes(data)
            staging.rename(final)
    say(done=True, artifact_bytes=1234)


def note(path: pathlib.Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line)


def inspect(options: argparse.Namespace, wanted: dict[str, object]) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    note(options.output.parent / "looks", f"{options.digest}\n")
    time.sleep(float(str(wanted.get("look_seconds", 0))))
    inspection = Inspection(
        digest=options.digest, size=options.input.stat().st_size, kind=str(wanted.get("kind", "model")),
        architecture="llama", name="stand-in", file_type=str(wanted.get("file_type", "Q4_K_M")),
        parameter_count=1_100_000_000,
        context_length=2048, embedding_length=64, chat_template=str(wanted.get("template", "")),
        pooling_type=0 if wanted.get("pools") else None,
        metadata={"general.architecture": "llama", "general.name": "stand-in",
                  "llama.context_length": 2048, "tokenizer.chat_template": "text",
                  "tokenizer.ggml.tokens": None},
        tensors=(TensorSummary("t", str(wanted.get("types", "Q8_0")), (2, 2)),),
        refusals={"onnx": "no recipe"} if wanted.get("refused") else {},
        estimates={"onnx": int(str(wanted.get("estimate", 1)))},
        projector_type=str(wanted.get("eyes", "")),
        vision_refusals={"onnx": "the projector type 'x' is not supported yet"} if wanted.get("blind") else {},
        vision_estimates={"onnx": 555} if wanted.get("eyes") else {},
        vision_memory={"onnx": 790} if wanted.get("eyes") else {},
    )  # fmt: skip
    arrays = options.output / f"{options.digest}.arrays.json"
    arrays.write_text('{"tokenizer.ggml.tokens":["a","b"]}')
    (options.output / f"{options.digest}.json").write_bytes(msgspec.json.encode(inspection))
    say(done=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    for name in ("--source", "--digest", "--target", "--type"):
        parser.add_argument(name)
    parser.add_argument("--input", type=pathlib.Path)
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--precise", action="store_true")
    parser.add_argument("--watch-stdin", action="store_true")
    options = parser.parse_args()
    text = options.input.read_bytes().removeprefix(b"GGUF")
    wanted = json.loads(text or b"{}")
    if wanted.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "fail" in wanted and wanted.get("fails_at", "convert") == options.command:
        fail(str(wanted["fail"]))
    commands = {"convert": convert, "vision": convert, "inspect": inspect, "quantise": quantise}
    commands[options.command](options, wanted)


if __name__ == "__main__":
    main()
