"""Blobs on their way to this store: one download per digest, whoever asks for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

from daemon.models.manifest import Layer, parse_digest
from daemon.models.registry.access import RegistryAccess
from daemon.models.registry.client import RegistryClient
from daemon.models.registry.download import BlobDownload
from daemon.models.registry.sharing import SHOW_SECONDS
from daemon.models.store import Store

Show = Callable[[int], None]


class _Flight:
    """What others may see of a download that somebody owns."""

    def __init__(self) -> None:
        self.completed_bytes = 0
        self.over = asyncio.Event()


class Flights:
    """Used on the event loop only. Pulls of different names that share a blob meet here."""

    def __init__(self, store: Store, access: RegistryAccess) -> None:
        self._store = store
        self._access = access
        self._flights: dict[str, _Flight] = {}

    def has(self, layer: Layer) -> bool:
        """Whether the blob is there, whole by its size; blobs on disk are trusted beyond that."""
        try:
            return self._store.blobs.path(parse_digest(layer.digest)).stat().st_size == layer.size
        except FileNotFoundError:
            return False

    @contextlib.asynccontextmanager
    async def turn(
        self, client: RegistryClient, layer: Layer, show: Show
    ) -> AsyncGenerator[BlobDownload | None]:
        """The download of this blob, to be owned for a while; None when the blob is there.

        Waits while another has it, showing how far that one is; goes on where it left off. Nobody
        holds two turns at once, so none waits in a circle.
        """
        while flight := self._flights.get(layer.digest):
            await _follow(flight, show)
        if self.has(layer):
            show(layer.size)
            yield None
            return
        flight = self._flights[layer.digest] = _Flight()

        def report(completed_bytes: int) -> None:
            flight.completed_bytes = completed_bytes
            show(completed_bytes)

        blob = self._store.blobs.path(parse_digest(layer.digest))
        try:
            async with self._access.download(
                client, layer.digest, blob, layer.size, report
            ) as download:
                if self.has(layer):  # another process finished it while we waited for its lock
                    await download.discard()
                    yield None
                else:
                    yield download
        finally:
            del self._flights[layer.digest]
            flight.over.set()


async def _follow(flight: _Flight, show: Show) -> None:
    while not flight.over.is_set():
        show(flight.completed_bytes)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(flight.over.wait(), SHOW_SECONDS)
