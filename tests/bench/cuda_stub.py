"""What ONNX Runtime's CUDA provider says to our graphs, without a GPU: `python -m tests.bench.cuda_stub
--runtime FOLDER`, where FOLDER is an unpacked wheel of onnxruntime-gpu.

The provider is real, the CUDA below it computes nothing (`cuda_stub.c`). So sessions are opened,
nodes are placed, kernels check what they are given, steps are recorded and replayed; numbers mean
nothing and nothing is fast. Prints for every architecture what the engine said at its load, and of
one decode step how many launches and copies from the host it takes as it is and recorded. Run it
when the runtime's version changes. Needs gcc and nm.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from converters.errors import ConversionError
from tests.models.random_architectures import ARCHITECTURES
from tests.models.random_gguf import make_gguf
from tests.parity.converted import converted_file

SOURCE = pathlib.Path(__file__).with_name("cuda_stub.c")
PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
RUNTIME, DRIVER, RANDOM = "libcudart.so.13", "libcuda.so.1", "libcurand.so.10"
_DEFINED = re.compile(r"^[a-z].*?\b(\w+)\([^;]*\)\s*\{", re.MULTILINE)


def build(runtime: pathlib.Path, folder: pathlib.Path) -> None:
    """Every library that the provider names, with every symbol that it wants of it."""
    wanted: dict[str, list[str]] = collections.defaultdict(list, {RANDOM: []})
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", runtime / PROVIDER], capture_output=True, check=True
    ).stdout.decode()
    for symbol in re.findall(r"U (\w+@libcu\S+)", listed):
        name, _, library = symbol.partition("@")
        wanted[library].append(name)
    compile_library(folder, DRIVER, SOURCE.read_text(), [])
    defined = set(_DEFINED.findall(SOURCE.read_text()))
    for library, names in wanted.items():
        own = (
            f"#define RUNTIME\n{SOURCE.read_text()}"
            if library == RUNTIME
            else "#include <stdlib.h>"
        )
        missing = [name for name in names if library != RUNTIME or name not in defined]
        compile_library(folder, library, own, missing)


def compile_library(folder: pathlib.Path, name: str, source: str, missing: list[str]) -> None:
    """`missing` answer 0, and what makes a handle makes one."""
    for symbol in missing:
        makes = symbol.startswith("cublas") and symbol.endswith(
            ("Create", "Create_v2", "Create_v3")
        )
        body = "void **h) { *h = calloc(1, 64);" if makes else "void) {"
        source += f"\nint {symbol}({body} return 0; }}"
    (folder / f"{name}.c").write_text(source)
    (folder / f"{name}.map").write_text(f"{name} {{ global: *; }};")
    versions = [] if name == DRIVER else [f"-Wl,--version-script={folder / name}.map"]
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-w", "-o", folder / name, folder / f"{name}.c",
         f"-Wl,-soname,{name}", *versions],
        check=True,
    )  # fmt: skip


# ---- in a child, over the stub ----


def try_model(folder: pathlib.Path) -> str:
    from backends.engine.contract import Engine
    from backends.onnx import backend, capture_trial, device_loading, device_steps
    from backends.onnx.engine import OnnxEngine
    from backends.types import Load

    # Whatever compares numbers would find that there are none.
    device_loading.check_device = lambda *_: 0.0
    device_loading.check_encoder = lambda *_: 0.0
    capture_trial._apart = lambda *_: 0.0
    capture_trial.LEAST_GAIN = 0.0
    device_steps._are_same = lambda *_: True
    load = Load(
        request_id="l", backend="onnx", artifact=str(folder), device="cuda", rows=2,
        context_length=400,
    )  # fmt: skip
    engine: Engine = backend.load(load)
    if isinstance(engine, OnnxEngine):
        # How much faster they are means nothing here.
        return f"{engine.capabilities.steps.partition(',')[0]}; {counted_steps(engine)}"
    widths = [len(vector) // 4 for vector in engine.embed([(3, 4, 5), (6, 7)])]
    return f"vectors of {widths[0]}"


def counted_steps(engine) -> str:
    import numpy as np

    stub = ctypes.CDLL(RUNTIME)
    graph, embeddings = engine._graph, engine._embedding.lookup([5, 6])[:, None]

    def counts() -> list[int]:
        return [stub.stub_launches(), stub.stub_uploads(), stub.stub_replays()]

    said: list[str] = []
    for is_on in (False, True):
        graph.steps.forget()
        graph.steps.is_capturing = is_on
        before = counts()
        for length in range(1, 9):
            before = counts()
            graph.run(0, np.ascontiguousarray(embeddings), [length, length], [0, 1])
        launches, uploads, replays = np.subtract(counts(), before)
        way = "recorded" if is_on else "as it is"
        said.append(f"{way} {launches} launches, {uploads} copies up, {replays} replays")
    return f"a step {'; '.join(said)}"


# ---- the command ----


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runtime", type=pathlib.Path, help="an unpacked onnxruntime-gpu")
    parser.add_argument("--types", default="Q8_0")
    parser.add_argument("--architecture", action="append", choices=ARCHITECTURES)
    parser.add_argument("--model", type=pathlib.Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.model:
        print(try_model(given.model), flush=True)
        return
    with tempfile.TemporaryDirectory() as place:
        root = pathlib.Path(place)
        build(given.runtime, root)
        paths = {
            "LD_LIBRARY_PATH": str(root),
            "PYTHONPATH": f"{given.runtime.resolve()}{os.pathsep}{pathlib.Path.cwd()}",
        }
        for architecture in given.architecture or ARCHITECTURES:
            path = make_gguf(
                root / f"{architecture}.gguf", architecture=architecture, types=given.types,
                kv_heads=4 if "bert" in architecture else 2,
            )  # fmt: skip
            try:
                folder = converted_file(path, target="onnx-cuda")
            except ConversionError as error:
                print(f"{architecture}: refused: {error}", flush=True)
                continue
            child = subprocess.run(
                [sys.executable, "-m", "tests.bench.cuda_stub", "--model", folder],
                env=os.environ | paths, capture_output=True, check=False,
            )  # fmt: skip
            told = child.stdout if child.returncode == 0 else child.stderr
            last = told.decode("utf-8", "replace").strip().rpartition("\n")[2]
            print(f"{architecture}: {last or child.returncode}", flush=True)


if __name__ == "__main__":
    main()
