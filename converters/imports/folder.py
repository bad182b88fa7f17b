"""The files of a model that is imported: which of them are read, and what they say as JSON.

Only files with known names are ever opened; pickled weights and code are not among them. A link
that leads out of the folder is refused; the cache of Hugging Face's own programs is one tree of
links, so there the whole model's folder counts. Raises MalformedFile, Unsupported.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from converters.errors import MalformedFile, Unsupported
from converters.imports.safetensors import StoredTensor, read_tensors
from converters.strict_json import parse_json

Json = dict[str, Any]

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
INDEX = "model.safetensors.index.json"
TEXT_FILES = (
    CONFIG,
    TOKENIZER,
    INDEX,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)
MAX_TEXT_BYTES = 64 << 20
MAX_ENTRIES = 1 << 14
MAX_SHARDS = 512

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_OTHER_WEIGHTS = (".h5", ".msgpack", ".onnx", ".ot", ".tflite")
_WEIGHTS = re.compile(r"model[^/]*\.safetensors")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def find_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Relative name → resolved path of all that an import may read. Nothing is opened."""
    root = _root(folder)
    names = [name for name in TEXT_FILES if (folder / name).exists()]
    with os.scandir(folder) as entries:
        listed = [entry.name for _, entry in zip(range(MAX_ENTRIES), entries, strict=False)]
    names += sorted(name for name in listed if name.endswith(".safetensors"))
    if not any(name.endswith(".safetensors") for name in names):
        raise _no_weights(listed)
    return {name: _contained(folder / name, root) for name in names}


def _root(folder: pathlib.Path) -> pathlib.Path:
    """`models--ORG--NAME/snapshots/REVISION` links to files in `models--ORG--NAME/blobs`."""
    resolved = folder.resolve()
    is_cached = resolved.parent.name == "snapshots"
    return resolved.parents[1] if is_cached and _is_model(resolved.parents[1]) else resolved


def _is_model(folder: pathlib.Path) -> bool:
    return folder.name.startswith("models--")


def _contained(path: pathlib.Path, root: pathlib.Path) -> pathlib.Path:
    resolved = path.resolve()
    if not resolved.is_relative_to(root):
        raise MalformedFile(f"{path.name} is a link that leads out of the folder")
    if not resolved.is_file():
        raise MalformedFile(f"{path.name} is not a plain file")
    return resolved


def _no_weights(names: list[str]) -> Exception:
    for name in sorted(names):
        if name.endswith(_PICKLED):
            return Unsupported(
                f"{name} holds pickled weights, which can run code when they are read: only"
                " safetensors are imported"
            )
        if name.endswith(_OTHER_WEIGHTS):
            return Unsupported(f"{name}: only safetensors are imported")
    return MalformedFile("the folder has no safetensors files")


class ModelFiles:
    """The files, by relative name, of one model; opened once, read by position."""

    def __init__(self, paths: Mapping[str, pathlib.Path], stack: contextlib.ExitStack) -> None:
        self._descriptors: dict[str, int] = {}
        for name, path in paths.items():
            file = stack.enter_context(path.open("rb"))
            self._descriptors[name] = file.fileno()

    def has(self, name: str) -> bool:
        return name in self._descriptors

    def text(self, name: str) -> str:
        """The content of a text file, "" where there is none."""
        descriptor = self._descriptors.get(name)
        if descriptor is None:
            return ""
        size = os.fstat(descriptor).st_size
        if size > MAX_TEXT_BYTES:
            raise MalformedFile(f"{name} has {size} bytes, over {MAX_TEXT_BYTES}")
        try:
            return os.pread(descriptor, size, 0).decode()
        except UnicodeDecodeError as error:
            raise MalformedFile(f"{name} is not UTF-8 ({error.reason})") from error

    def json(self, name: str) -> Json:
        """An object; empty where there is no such file."""
        text = self.text(name)
        if not text:
            return {}
        found = parse_json(text, name)
        if not isinstance(found, dict):
            raise MalformedFile(f"{name} is not a JSON object")
        return found

    def tensors(self) -> dict[str, StoredTensor]:
        """By name, of all files that hold this model's weights."""
        found: dict[str, StoredTensor] = {}
        for file_name in self._weight_files():
            for tensor in read_tensors(self._descriptors[file_name], file_name):
                if tensor.name in found:
                    raise MalformedFile(f"{file_name}: tensor {tensor.name!r} is in two files")
                found[tensor.name] = tensor
        for name, file_name in self._index().items():
            if name not in found:
                raise MalformedFile(f"{file_name} does not hold the tensor {name!r} of {INDEX}")
        return found

    def _weight_files(self) -> list[str]:
        indexed = sorted(set(self._index().values()))
        for file_name in indexed:
            if file_name not in self._descriptors:
                raise MalformedFile(f"{file_name[:200]!r} is named in {INDEX} and is not there")
        if indexed:
            return indexed
        found = [name for name in self._descriptors if name.endswith(".safetensors")]
        if not found:
            raise _no_weights(list(self._descriptors))
        usual = [name for name in found if _WEIGHTS.fullmatch(name)]
        if not usual and all(name.startswith("consolidated") for name in found):
            raise Unsupported(
                f"{found[0]}: Mistral's own names of tensors are not imported; take the"
                " model.safetensors of the same model"
            )
        return usual or found

    def _index(self) -> dict[str, str]:
        """Tensor → file; empty where there is no index."""
        if not self.has(INDEX):
            return {}
        try:
            placed = msgspec.convert(self.json(INDEX).get("weight_map"), dict[str, str])
        except msgspec.ValidationError as error:
            raise MalformedFile(f"{INDEX}: {error}") from error
        shards = set(placed.values())
        if len(shards) > MAX_SHARDS:
            raise MalformedFile(f"{INDEX} names {len(shards)} files, over {MAX_SHARDS}")
        for name in shards:
            if not _PLAIN_NAME.fullmatch(name) or not name.endswith(".safetensors"):
                raise MalformedFile(f"{INDEX} names {name[:200]!r}, which is no file beside it")
        return placed
