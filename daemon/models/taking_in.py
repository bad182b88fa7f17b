"""A local file becomes a blob: linked where the filesystem can, copied where not, with progress."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import AsyncGenerator, Callable

from daemon.errors import NotFound
from daemon.models.create_request import CreateStatus
from daemon.models.store import Store

_REPORT_SECONDS = 0.2


async def take_in(
    store: Store, path: pathlib.Path, tell_digest: Callable[[str], object] = lambda _: None
) -> AsyncGenerator[CreateStatus]:
    """Makes a local file a blob; its hex digest is told before the stream ends. Raises NotFound.

    Whoever closes the stream early is told as well, if the blob is there by then.
    """
    task = _Importing(store, path)
    try:
        async for status in task.follow():
            yield status
        await task.task
    except OSError as error:
        raise NotFound(f"{path.name} cannot be read: {error.strerror}") from error
    finally:
        if digest := await task.stop():
            tell_digest(digest)


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

    async def stop(self) -> str:
        """The digest of a blob that was made, else ""."""
        self.task.cancel()
        (result,) = await asyncio.gather(self.task, return_exceptions=True)
        return result if isinstance(result, str) else ""
