"""Putting local files and folders on the shelf: looked at first, linked where possible, then created."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncGenerator

from converters.inspection import Inspection
from daemon.errors import Invalid, NotFound, NotYet
from daemon.models.create import Creator
from daemon.models.create_request import CreateRequest, CreateStatus
from daemon.models.importing import Source, import_files
from daemon.models.jobs import Conversions
from daemon.models.name import parse_name
from daemon.models.split_parts import is_split_part, sibling_parts
from daemon.models.store import Store
from daemon.models.taking_in import take_in


def import_file(
    store: Store,
    conversions: Conversions,
    creator: Creator,
    path: pathlib.Path,
    name: str,
    *,
    optimum: pathlib.Path | None = None,
) -> AsyncGenerator[CreateStatus]:
    """Statuses as those of create, before them `importing FILE` with bytes. Raises Invalid at once.

    What the inspector refuses is refused before a byte is copied. The stream raises NotFound when
    the file cannot be read, else what create raises.
    """
    parse_name(name)
    if not path.is_absolute():
        raise Invalid("the file's path must be absolute")
    request = CreateRequest(model=name)
    if optimum is not None and not path.is_dir():
        raise Invalid(f"{path.name} is not a folder that optimum could export")
    if path.is_dir() or is_split_part(path.name):
        return _import_several(store, conversions, creator, path, request, optimum)
    return _import_file(store, conversions, creator, path, request)


async def _import_file(
    store: Store,
    conversions: Conversions,
    creator: Creator,
    path: pathlib.Path,
    request: CreateRequest,
) -> AsyncGenerator[CreateStatus]:
    store.require_writable()
    yield CreateStatus(status=f"inspecting {path.name}")
    await creator.target_for(await _inspect_model(conversions, path))
    digests: list[str] = []
    async with contextlib.aclosing(take_in(store, path, digests.append)) as steps:
        async for status in steps:
            yield status
    async with contextlib.aclosing(
        _create(store, creator, request, path.name, digests[0])
    ) as steps:
        async for status in steps:
            yield status


async def _import_several(
    store: Store,
    conversions: Conversions,
    creator: Creator,
    path: pathlib.Path,
    request: CreateRequest,
    optimum: pathlib.Path | None,
) -> AsyncGenerator[CreateStatus]:
    """Read where they lie: only the GGUF that is made of them comes onto the shelf."""
    store.require_writable()
    source = await asyncio.to_thread(_source, path, parse_name(request.model).model, optimum)
    digests: list[str] = []
    try:
        making = import_files(store, conversions, source, digests.append)
        async with contextlib.aclosing(making) as steps:
            async for status in steps:
                yield status
    except OSError as error:
        raise NotFound(f"{path.name} is nothing that the daemon can read") from error
    async with contextlib.aclosing(
        _create(store, creator, request, f"{path.name}.gguf", digests[0])
    ) as steps:
        async for status in steps:
            yield status


def _source(path: pathlib.Path, name: str, optimum: pathlib.Path | None) -> Source:
    if path.is_dir():
        return Source(name=name, folder=path, optimum=optimum)
    return Source(parts=tuple(sibling_parts(path)))


async def _create(
    store: Store, creator: Creator, request: CreateRequest, file_name: str, digest: str
) -> AsyncGenerator[CreateStatus]:
    with store.pinned([digest]):
        filled = CreateRequest(model=request.model, files={file_name: f"sha256:{digest}"})
        async with contextlib.aclosing(creator.create(filled)) as steps:
            async for status in steps:
                yield status


async def _inspect_model(conversions: Conversions, path: pathlib.Path) -> Inspection:
    try:
        inspection = await conversions.preview(path)
    except NotFound:
        raise NotFound(f"{path.name} is not a file that the daemon can read") from None
    if inspection.kind != "model":
        raise NotYet(f"{path.name} is a {inspection.kind}, which cannot be imported yet")
    return inspection
