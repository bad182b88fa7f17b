"""Imports an encoder that has no recipe here: exported by optimum-onnx, carried by a GGUF.

The export runs in that package's own environment, as a confined process of its own
(`optimum_export`); what comes back is checked as a stranger's graph before it is written. Raises
ConversionError.
"""

from __future__ import annotations

import pathlib
import signal
import subprocess
import tempfile
from collections.abc import Callable

import msgspec
import numpy as np

from converters.convert_graph import check_graph
from converters.errors import ConversionError, MalformedFile, Unsupported
from converters.foreign_graph import ARCHITECTURE, GRAPH_TENSOR, MAX_GRAPH_BYTES
from converters.gguf import parse_header
from converters.gguf_types import ValueType
from converters.gguf_writer import NewTensor, TypedValue, plan_file
from converters.imports.config import Config, check_not_quantised
from converters.imports.families.bert import MEAN
from converters.imports.folder import CONFIG, ModelFiles
from converters.imports.import_model import pooling_of
from converters.imports.recipe import Keys
from converters.imports.vocabulary import vocabulary_keys
from converters.made_gguf import Made, make_gguf
from converters.plan import require_convertible
from converters.progress import Progress

_EXPORT = pathlib.Path(__file__).with_name("optimum_export.py")
_GRAPH = "model.onnx"
_SLICE_BYTES = 8 << 20


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What the export says of itself; `difference` is the worst of its numbers from the original's."""

    inputs: tuple[str, ...]
    width: int
    positions: int
    model_type: str
    difference: float


def export(
    environment: pathlib.Path, folder: pathlib.Path, final: pathlib.Path, progress: Progress
) -> tuple[bytes, Exported]:
    """The graph's bytes. The process ends with this one, and its files go with it."""
    progress.start("export")
    python = environment / "bin" / "python"
    with tempfile.TemporaryDirectory(prefix=f"{final.name}.export-", dir=final.parent) as output:
        command = [str(python), "-I", str(_EXPORT), "--input", str(folder), "--output", output]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
            try:
                assert child.stdout is not None
                answer = child.stdout.read(1 << 16)
                child.wait()
            except BaseException:
                child.send_signal(signal.SIGKILL)
                raise
        exported = _understood(answer, child.returncode)
        graph = pathlib.Path(output) / _GRAPH
        if (pathlib.Path(output) / f"{_GRAPH}_data").exists():
            raise Unsupported(f"the exported graph is over {MAX_GRAPH_BYTES} bytes")
        return graph.read_bytes(), exported


def _understood(answer: bytes, code: int) -> Exported:
    try:
        found = msgspec.json.decode(answer)
        if "error" in found:
            raise Unsupported(f"optimum does not export it: {found['error']}")
        return msgspec.convert(found, Exported)
    except msgspec.MsgspecError as error:
        raise ConversionError(f"the export ended without an answer (exit code {code})") from error


def import_graph(
    files: ModelFiles,
    graph: bytes,
    exported: Exported,
    name: str,
    final: pathlib.Path,
    progress: Progress,
) -> Made:
    """Makes the folder `final` with the GGUF in it."""
    progress.start("plan")
    values = files.json(CONFIG)
    check_not_quantised(values)
    check_graph(graph, exported.width)
    config = Config(values)
    keys, notes = _keys(files, config, exported, name)
    planned = plan_file(keys, [NewTensor(GRAPH_TENSOR, (len(graph),), "I8")])
    require_convertible(parse_header(planned.header, planned.total_bytes))
    return make_gguf(final, planned, lambda _: _pieces(graph, progress.advance), progress, notes)


def _keys(
    files: ModelFiles, config: Config, exported: Exported, name: str
) -> tuple[dict[str, TypedValue], tuple[str, ...]]:
    pooling = pooling_of(files)
    keys = Keys(ARCHITECTURE)
    longest = exported.positions or config.count("max_position_embeddings", 0)
    if not longest:
        raise MalformedFile("config.json does not say how long a text may be")
    keys.count("context_length", min(longest, pooling.length or longest))
    keys.count("embedding_length", exported.width)
    keys.count("pooling_type", pooling.kind or MEAN)
    keys.text("model_type", exported.model_type)
    keys.number("export_difference", exported.difference)
    general = {"general.name": TypedValue(ValueType.STRING, name)}
    vocabulary, notes = vocabulary_keys(files, config, config.count("vocab_size"))
    if not pooling.kind:
        notes = (*notes, "the folder names no pooling: the mean of all ids is taken")
    return keys.found | general | vocabulary, notes


def _pieces(graph: bytes, advance: Callable[[int], None]) -> list[np.ndarray]:
    whole = np.frombuffer(graph, np.uint8)
    advance(len(graph))
    return [whole[start : start + _SLICE_BYTES] for start in range(0, len(whole), _SLICE_BYTES)]
