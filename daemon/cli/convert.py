"""`hearth convert`: the converter run by hand, without a daemon."""

from __future__ import annotations

import argparse
import hashlib
import pathlib
import subprocess
import sys
from typing import Any

import msgspec

from daemon.cli.client import ClientError
from daemon.cli.terminal import ProgressLine, human_bytes

_HASH_CHUNK_BYTES = 4 << 20


def convert_file(arguments: argparse.Namespace) -> int:
    source = pathlib.Path(arguments.file)
    if not source.is_file():
        raise ClientError(f"{source} is not a file")
    output = pathlib.Path(arguments.output).absolute()
    if output.exists() and any(output.iterdir()):
        raise ClientError(f"{output} exists and is not empty")
    if output.exists():
        output.rmdir()
    output.parent.mkdir(parents=True, exist_ok=True)
    target = "onnx-cpu" if arguments.target == "onnx" else arguments.target
    line = ProgressLine()
    try:
        source_id = _hash(source, line)
        last = _run_converter(source, source_id, target, output, arguments.precise, line)
    finally:
        line.close()
    print(f"wrote {output} ({human_bytes(last.get('artifact_bytes', 0))})")
    return 0


def _hash(source: pathlib.Path, line: ProgressLine) -> str:
    total = source.stat().st_size
    digest = hashlib.sha256()
    with source.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
            line.show("hashing", file.tell(), total)
    return digest.hexdigest()


def _run_converter(
    source: pathlib.Path,
    source_id: str,
    target: str,
    output: pathlib.Path,
    precise: bool,
    line: ProgressLine,
) -> dict[str, Any]:
    command = [sys.executable, "-m", "converters", "convert", "--input", str(source.absolute())]
    command += ["--source", source_id, "--target", target, "--output", str(output)]
    command += ["--precise"] if precise else []
    last: dict[str, Any] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for text in child.stdout:
            last = msgspec.json.decode(text)
            if "phase" in last:
                line.show(f"converting: {last['phase']}", last["done"], last["total"])
    if child.returncode:
        raise ClientError(str(last.get("error", f"the converter ended with {child.returncode}")))
    return last
