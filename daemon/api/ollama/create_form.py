"""The forms that `/api/create` has had: fields, a Modelfile as text, a Modelfile on this machine.

The two older ones become the first. A path is only read where the owner allows it
(HEARTH_CREATE_PATH=1): any client could otherwise ask for any file. Fields of the request win over
the Modelfile's.
"""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import re
from collections.abc import AsyncGenerator
from typing import Any

from daemon.api.parameters import typed_parameters
from daemon.api.services import Services
from daemon.errors import Forbidden, Invalid, NotFound, NotYet
from daemon.models.create_request import CreateRequest, CreateStatus
from daemon.models.manifest import StoredMessage
from daemon.models.modelfile import Modelfile, ModelfileError, decode_text, parse
from daemon.models.name import parse_name
from daemon.models.split_parts import sibling_parts
from daemon.models.store import Store
from daemon.models.taking_in import take_in
from daemon.models.tensor_folder import folder_files

_MAX_MODELFILE_BYTES = 16 << 20
_BLOB = re.compile(r"@?sha256[:-]([0-9a-fA-F]{64})")
_LOOKS_LIKE_A_PATH = re.compile(r"[~.]?/|\.\./|.*\.gguf$", re.IGNORECASE)


class CreateForm(CreateRequest, frozen=True, kw_only=True):
    """`modelfile` is text, `path` a Modelfile of the daemon's machine."""

    modelfile: str = ""
    path: str = ""


async def begin_create(form: CreateForm, services: Services) -> AsyncGenerator[CreateStatus]:
    """The stream of statuses. Raises what is refused before any: Invalid, Forbidden, NotFound."""
    if not form.modelfile and not form.path:
        return services.creator.create(form)
    parse_name(form.model or form.name)
    folder = None
    text = form.modelfile
    if not text:
        path = _allowed_path(form.path, services)
        text, folder = await asyncio.to_thread(_read, path), path.parent
    try:
        modelfile = parse(text)
        fields = _fields(modelfile)
    except ModelfileError as error:
        raise Invalid(str(error)) from error
    return _create(form, fields, _Sources(services.store, modelfile, folder), services)


async def _create(
    form: CreateForm, fields: dict[str, Any], sources: _Sources, services: Services
) -> AsyncGenerator[CreateStatus]:
    yield CreateStatus(status="parsing modelfile")
    with contextlib.ExitStack() as pins:
        async with contextlib.aclosing(sources.take_in(services, pins)) as steps:
            async for step in steps:
                yield step
        given: dict[str, Any] = {
            name: value
            for name in CreateRequest.__struct_fields__
            if (value := getattr(form, name)) not in ("", None)
        }
        found: dict[str, Any] = {
            "source": sources.name,
            "files": sources.files or None,
            "adapters": sources.adapters or None,
        }
        request = CreateRequest(**(fields | found | given))
        async with contextlib.aclosing(services.creator.create(request)) as steps:
            async for step in steps:
                yield step


def _allowed_path(text: str, services: Services) -> pathlib.Path:
    if not services.config.create_path:
        raise Forbidden(
            "create with 'path' reads files of the daemon's machine, which its owner has not "
            "allowed (HEARTH_CREATE_PATH=1); send the Modelfile's text as 'modelfile'"
        )
    path = pathlib.Path(text)
    if not path.is_absolute():
        raise Invalid("the path of the Modelfile must be absolute")
    return path


def _read(path: pathlib.Path) -> str:
    try:
        if not path.is_file():
            raise NotFound(f"{path} is not a file that the daemon can read")
        with path.open("rb") as file:
            data = file.read(_MAX_MODELFILE_BYTES + 1)
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_MODELFILE_BYTES:
        raise Invalid(f"the Modelfile is over {_MAX_MODELFILE_BYTES} bytes")
    try:
        return decode_text(data)
    except ModelfileError as error:
        raise Invalid(str(error)) from error


def _fields(modelfile: Modelfile) -> dict[str, Any]:
    """What the Modelfile says beside where the weights are. Raises ModelfileError."""
    names = ("template", "system", "renderer", "parser", "requires")
    fields: dict[str, Any] = {name: modelfile.last(name) for name in names}
    fields["license"] = modelfile.values("license") or None
    fields["parameters"] = typed_parameters(modelfile.parameters) or None
    messages = [StoredMessage(role=role, content=text) for role, text in modelfile.messages]
    fields["messages"] = messages or None
    return fields


class _Sources:
    """The FROM and ADAPTER lines: `name` of a model, `files` and `adapters` by digest.

    `folder` None: no file may be read. Raises Invalid, NotYet.
    """

    def __init__(self, store: Store, modelfile: Modelfile, folder: pathlib.Path | None) -> None:
        if modelfile.values("draft"):
            raise NotYet("create with DRAFT is not supported by this version yet")
        self.name = ""
        self.files: dict[str, str] = {}
        self.adapters: dict[str, str] = {}
        self._paths: list[tuple[str, pathlib.Path, dict[str, str]]] = []
        for source in modelfile.values("from"):
            if not self._add_file("FROM", source, store, folder, self.files):
                self._add_name(source)
        for source in modelfile.values("adapter"):
            if not self._add_file("ADAPTER", source, store, folder, self.adapters):
                raise _unnameable("ADAPTER", source)

    def _add_file(
        self,
        command: str,
        source: str,
        store: Store,
        folder: pathlib.Path | None,
        files: dict[str, str],
    ) -> bool:
        """False for what may be a model's name."""
        path = folder / pathlib.Path(source).expanduser() if folder is not None else None
        if digest := _blob_digest(source, store):
            files[f"sha256-{digest}"] = f"sha256:{digest}"
        elif path is not None and path.is_file():
            self._paths += [(part.name, part, files) for part in sibling_parts(path)]
        elif path is not None and path.is_dir() and command == "FROM":
            self._paths += [(name, found, files) for name, found in folder_files(path).items()]
        elif _LOOKS_LIKE_A_PATH.match(source):
            raise _unnameable(command, source)
        else:
            return False
        return True

    def _add_name(self, source: str) -> None:
        if self.name:
            raise Invalid(f"FROM names two models: {self.name}, {source}")
        self.name = source

    async def take_in(
        self, services: Services, pins: contextlib.ExitStack
    ) -> AsyncGenerator[CreateStatus]:
        """Puts the files that lie beside the Modelfile on the shelf, pinned while `pins` is open."""
        for name, path, files in self._paths:
            digests: list[str] = []
            async with contextlib.aclosing(take_in(services.store, path, digests.append)) as steps:
                async for step in steps:
                    yield step
            pins.enter_context(services.store.pinned(digests))
            files[name] = f"sha256:{digests[0]}"


def _unnameable(command: str, source: str) -> Invalid:
    return Invalid(
        f"{command} {source}: not a file that this request can name; upload it to /api/blobs "
        f"and say {command} @sha256:<digest>"
    )


def _blob_digest(source: str, store: Store) -> str:
    """Hex when `source` names a blob: `@sha256:…`, or the path of one in the store, as show has it."""
    match = _BLOB.fullmatch(source)
    if match is None and pathlib.Path(source).parent == store.blobs.folder:
        match = _BLOB.fullmatch(pathlib.Path(source).name)
    return match[1].lower() if match else ""
