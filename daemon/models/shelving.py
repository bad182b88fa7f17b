"""Putting local files on the shelf: looked at first, linked where that is possible, then created."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncGenerator

from converters.inspection import Inspection
from daemon.errors import Invalid, NotFound, NotYet
from daemon.models.create import Creator
from daemon.models.create_request import CreateRequest, CreateStatus
from daemon.models.jobs import Conversions
from daemon.models.name import parse_name
from daemon.models.store import Store

_REPORT_SECONDS = 0.2


def import_file(
    store: Store, conversions: Conversions, creator: Creator, path: pathlib.Path, name: str
) -> AsyncGenerator[CreateStatus]:
    """Statuses as those of create, before them `importing FILE` with bytes. Raises Invalid at once.

    What the inspector refuses is refused before a byte is copied. The stream raises NotFound when
    the file cannot be read, else what create raises.
    """
    parse_name(name)
    if not path.is_absolute():
        raise Invalid("the file's path must be absolute")
    request = CreateRequest(model=name)
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
    task = _Importing(store, path)
    try:
        async for status in task.follow():
            yield status
        digest = await task.task
    except OSError as error:
        raise NotFound(f"{path.name} cannot be read: {error.strerror}") from error
    finally:
        await task.stop()
    with store.pinned([digest]):
        filled = CreateRequest(model=request.model, files={path.name: f"sha256:{digest}"})
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


class _Importing:
    """A file being linked or copied in a thread, and how far it is."""

    def __init__(self, store: Store, path: pathlib.Path) -> None:
        self._name = path.name
        self._done = self._total = 0
        self.task = asyncio.create_task(store.link_blob(path, self._report))

    def _report(self, done: int, total: int) -> None:
        self._done, self._total = done, total

    async def follow(self) -> AsyncGenerator[CreateStatus]:
        while not self.task.done():
            await asyncio.wait({self.task}, timeout=_REPORT_SECONDS)
            yield CreateStatus(
                status=f"importing {self._name}", total=self._total, completed=self._done
            )

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
