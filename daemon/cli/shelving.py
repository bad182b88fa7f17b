"""`hearth import`, `hearth create` and `hearth quantize`: files onto the shelf, with progress."""

from __future__ import annotations

import argparse
import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any

from daemon.api.parameters import typed_parameters
from daemon.cli.client import Client, ClientError
from daemon.cli.terminal import ProgressLine
from daemon.errors import Invalid
from daemon.models.modelfile import Modelfile, ModelfileError, decode_text, parse
from daemon.models.resolved import ONLY_ONE_ADAPTER
from daemon.models.split_parts import sibling_parts
from daemon.models.tensor_folder import folder_files

_CHUNK_BYTES = 1 << 20
# Answers that say the daemon cannot see our files: another user's, or another machine's.
_NOT_REACHABLE = (403, 404)


def import_file(arguments: argparse.Namespace) -> int:
    """A GGUF, or a folder of safetensors: read where it lies when the daemon can, else uploaded."""
    path = pathlib.Path(arguments.file).absolute()
    if not path.is_file() and not path.is_dir():
        raise ClientError(f"{path} is not a file or a folder")
    with Client() as client:
        try:
            asked = {"path": str(path), "model": arguments.name, "optimum": arguments.optimum}
            _follow(client, "/api/import", asked)
        except ClientError as error:
            if error.status not in _NOT_REACHABLE or arguments.optimum:
                raise
            body = {"model": arguments.name, "files": _uploaded(client, path)}
            _follow(client, "/api/create", body)
    return 0


def _uploaded(client: Client, path: pathlib.Path) -> dict[str, str]:
    """Relative name → digest of a file and its other parts, or of a folder's. Raises ClientError."""
    try:
        parts = [] if path.is_dir() else sibling_parts(path)
        files = {part.name: part for part in parts} or folder_files(path)
    except Invalid as error:
        raise ClientError(error.message) from error
    return {name: upload(client, file) for name, file in files.items()}


def create_model(arguments: argparse.Namespace) -> int:
    path = pathlib.Path(arguments.file)
    try:
        modelfile = parse(decode_text(path.read_bytes()))
        with Client() as client:
            body = _create_body(client, modelfile, path.parent)
            body |= {"model": arguments.model}
            body |= {"quantize": arguments.quantize} if arguments.quantize else {}
            _follow(client, "/api/create", body)
    except OSError as error:
        raise ClientError(f"{path}: {error.strerror}") from error
    except ModelfileError as error:
        raise ClientError(f"{path}: {error}") from error
    return 0


def quantise_model(arguments: argparse.Namespace) -> int:
    body = {"model": arguments.name, "from": arguments.source, "quantize": arguments.type}
    with Client() as client:
        _follow(client, "/api/create", body)
    return 0


def _create_body(client: Client, modelfile: Modelfile, folder: pathlib.Path) -> dict[str, Any]:
    body: dict[str, Any] = {}
    for source in modelfile.values("from"):
        file = folder / pathlib.Path(source).expanduser()
        if file.is_file() or file.is_dir():
            body.setdefault("files", {}).update(_uploaded(client, file))
        else:
            body["from"] = source
    adapters = modelfile.values("adapter")
    if len(adapters) > 1:
        raise ClientError(ONLY_ONE_ADAPTER)
    for source in adapters:
        file = folder / pathlib.Path(source).expanduser()
        if not file.exists():
            raise ClientError(f"ADAPTER {source}: {file} is not a file or a folder")
        body["adapters"] = _uploaded(client, file)
    for name in ("template", "system", "renderer", "parser", "requires"):
        if value := modelfile.last(name):
            body[name] = value
    if licenses := modelfile.values("license"):
        body["license"] = licenses
    if modelfile.parameters:
        body["parameters"] = typed_parameters(modelfile.parameters)
    if modelfile.messages:
        body["messages"] = [{"role": role, "content": text} for role, text in modelfile.messages]
    return body


def upload(client: Client, path: pathlib.Path) -> str:
    """The file's digest once the daemon holds it. Raises ClientError."""
    line = ProgressLine()
    total = path.stat().st_size
    try:
        digest = hashlib.sha256()
        for chunk, done in _chunks(path):
            digest.update(chunk)
            line.show(f"hashing {path.name}", done, total)
        name = f"sha256:{digest.hexdigest()}"
        if not client.exists(f"/api/blobs/{name}"):
            client.request("POST", f"/api/blobs/{name}", content=_sent(path, total, line))
    finally:
        line.close()
    return name


def _sent(path: pathlib.Path, total: int, line: ProgressLine) -> Iterator[bytes]:
    for chunk, done in _chunks(path):
        yield chunk
        line.show(f"copying {path.name}", done, total)


def _chunks(path: pathlib.Path) -> Iterator[tuple[bytes, int]]:
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            done += len(chunk)
            yield chunk, done


def _follow(client: Client, path: str, body: dict[str, Any]) -> None:
    line = ProgressLine()
    try:
        for event in client.stream(path, body):
            line.show(event.get("status", ""), event.get("completed", 0), event.get("total", 0))
    finally:
        line.close()
