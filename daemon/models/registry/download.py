"""Fetching one blob: parts side by side, each resumed where it stopped, stalls and errors survived.

Nothing that was synced is fetched twice, across cancels, restarts and power cuts. What the caller
sees of the progress never runs backwards. The digest is taken over what is on disk, at the end.
"""

from __future__ import annotations

import asyncio
import hashlib
import pathlib
import random
import re
from collections.abc import Callable

import aiohttp
import msgspec

from daemon.errors import DaemonError, Internal, NoSpace, NotFound
from daemon.models.registry.client import (
    Location,
    RegistryClient,
    RegistryRefused,
    Unreachable,
)
from daemon.models.registry.parts import Part, PartialBlob
from daemon.models.registry.throttle import Throttle

_WRITE_BYTES = 4 << 20
_SAVE_BYTES = 32 << 20
_HASH_BYTES = 8 << 20
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")

Progress = Callable[[int], None]


class DownloadSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`tries` counts failures in a row of one part; a stall is none of them."""

    streams: int = 8
    tries: int = 6
    stall_seconds: float = 30.0
    first_pause_seconds: float = 1.0
    longest_pause_seconds: float = 60.0


class _Stalled(Exception):
    """No byte came for too long."""


class _IgnoresRanges(Exception):
    """The server sends everything from the start whatever it is asked for."""


class BlobDownload:
    """One blob's way to the disk. Owned by one task; `completed` may be read by others."""

    def __init__(
        self,
        client: RegistryClient,
        digest: str,
        blob: pathlib.Path,
        total_bytes: int,
        *,
        throttle: Throttle,
        settings: DownloadSettings,
        progress: Progress,
    ) -> None:
        self._client = client
        self._digest = digest
        self._throttle = throttle
        self._settings = settings
        self._progress = progress
        self._shown = 0
        self._in_flight: dict[int, int] = {}
        self.partial = PartialBlob(blob, total_bytes)
        self._location: Location | None = None
        self.fetched_bytes = 0

    async def open(self) -> None:
        """Takes up what an earlier try left. Raises NoSpace."""
        await asyncio.to_thread(self.partial.open)
        self._show()

    async def fetch_head(self, byte_count: int) -> None:
        """The first `byte_count` bytes, so that a header can be looked at before the rest."""
        end = min(byte_count, self.partial.total_bytes)
        for part in self.partial.parts:
            wanted = min(end - part.offset, part.size)
            if wanted > part.completed:
                await self._fetch_part(part, wanted)

    async def fetch_rest(self) -> None:
        """Everything still missing. Raises NoSpace, Internal when tries are used up."""
        gate = asyncio.Semaphore(self._settings.streams)

        async def fetch(part: Part) -> None:
            async with gate:
                await self._fetch_part(part, part.size)

        try:
            async with asyncio.TaskGroup() as group:
                for part in self.partial.parts:
                    if not part.is_done:
                        group.create_task(fetch(part))
        except* DaemonError as failures:
            raise _first(failures) from failures

    async def verify_and_finish(self) -> None:
        """Raises Internal for content that is not what its digest says; then nothing is left of it."""
        found = await asyncio.to_thread(_hash_file, self.partial.path)
        if f"sha256:{found}" != self._digest:
            await asyncio.to_thread(self.partial.discard)
            raise Internal(
                "digest mismatch, file must be downloaded again: "
                f"want {self._digest}, got sha256:{found}"
            )
        await asyncio.to_thread(self.partial.finish)

    async def close(self) -> None:
        """Lets go of the files; they stay for the next try."""
        await asyncio.to_thread(self.partial.close)

    # ---- one part ----

    async def _fetch_part(self, part: Part, wanted: int) -> None:
        failures = 0
        while part.completed < wanted:
            before = part.completed
            try:
                await self._stream(part, wanted)
            except _Stalled:
                continue
            except _IgnoresRanges:
                raise Internal(
                    "the registry ignores byte ranges; this blob is too large for that"
                ) from None
            except (Unreachable, RegistryRefused) as error:
                failures = 1 if part.completed > before else failures + 1
                await self._pause_or_give_up(error, failures)
                self._location = None

    async def _pause_or_give_up(self, error: DaemonError, failures: int) -> None:
        is_final = isinstance(error, RegistryRefused) and not _is_passing(error.code)
        if is_final:
            raise error
        if failures >= self._settings.tries:
            raise Internal(f"max retries exceeded: {error.message}")
        pause = self._settings.first_pause_seconds * 2 ** (failures - 1)
        if isinstance(error, RegistryRefused) and error.retry_after_seconds:
            pause = max(pause, error.retry_after_seconds)
        pause = min(pause, self._settings.longest_pause_seconds)
        await asyncio.sleep(pause * random.uniform(0.75, 1.25))

    async def _stream(self, part: Part, wanted: int) -> None:
        """One request for what is missing of the part; saves as it goes and when it is cut off."""
        start, end = part.offset + part.completed, part.offset + wanted
        location = await self._located()
        headers = {"Range": f"bytes={start}-{end - 1}"}
        try:
            async with self._client.open(location, headers=headers) as answer:
                # A server without ranges is fine for a blob that is asked for from its start.
                if answer.status == 200 and start == 0 and end == self.partial.total_bytes:
                    pass
                elif answer.status == 200:
                    raise _IgnoresRanges
                else:
                    _check_range(
                        answer.status,
                        answer.headers.get("Content-Range", ""),
                        start,
                        self.partial.total_bytes,
                    )
                await self._receive(part, wanted, answer.content)
        finally:
            self._in_flight.pop(part.n, None)

    async def _located(self) -> Location:
        if self._location is None:
            self._location = await self._client.locate(self._digest)
        return self._location

    async def _receive(self, part: Part, wanted: int, content: aiohttp.StreamReader) -> None:
        written, saved = part.completed, part.completed
        held = bytearray()
        try:
            while written + len(held) < wanted:
                chunk = await self._next_chunk(content)
                if not chunk:
                    raise Unreachable("the registry ended the blob early")
                held += chunk[: wanted - written - len(held)]
                self.fetched_bytes += len(chunk)
                self._in_flight[part.n] = written + len(held) - part.completed
                self._show()
                if len(held) >= _WRITE_BYTES:
                    written = await self._write(part, written, held)
                if written - saved >= _SAVE_BYTES:
                    saved = await self._save(part, written)
        finally:
            # Also when cancelled: what came in is kept.
            written = await asyncio.shield(self._write(part, written, held))
            await asyncio.shield(self._save(part, written))

    async def _next_chunk(self, content: aiohttp.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(self._settings.stall_seconds):
                chunk = await content.readany()
        except TimeoutError as error:
            raise _Stalled from error
        await self._throttle.spend(len(chunk))
        return chunk

    async def _write(self, part: Part, written: int, held: bytearray) -> int:
        if held:
            data = bytes(held)
            held.clear()
            await asyncio.to_thread(self.partial.write, part.offset + written, data)
            written += len(data)
        return written

    async def _save(self, part: Part, written: int) -> int:
        self._in_flight[part.n] = self._in_flight.get(part.n, 0) - (written - part.completed)
        part.completed = written
        await asyncio.to_thread(self.partial.save, part)
        return written

    def _show(self) -> None:
        now = self.partial.completed_bytes() + sum(self._in_flight.values())
        self._shown = max(self._shown, min(now, self.partial.total_bytes))
        self._progress(self._shown)


def _is_passing(code: int) -> bool:
    """Whether trying again may help: too many requests, or the server's own trouble.

    403 and 401 of a direct address mean that it expired: it is asked for anew.
    """
    return code in (401, 403, 408, 425, 429) or code >= 500


def _check_range(status: int, header: str, start: int, total: int) -> None:
    """Raises RegistryRefused unless the answer is the very range that was asked for."""
    match = _CONTENT_RANGE.fullmatch(header.strip())
    if status != 206 or match is None:
        raise RegistryRefused(
            status, f"the registry answers {status} to a request for a byte range"
        )
    if int(match[1]) != start or match[3] not in ("*", str(total)):
        raise RegistryRefused(310, f"the registry sent another range than asked: {header}")


def _first(failures: BaseExceptionGroup[DaemonError]) -> DaemonError:
    """The reason to show: a full disk before a broken connection."""
    leaves: list[DaemonError] = []

    def collect(group: BaseExceptionGroup[DaemonError]) -> None:
        for error in group.exceptions:
            if isinstance(error, BaseExceptionGroup):
                collect(error)
            else:
                leaves.append(error)

    collect(failures)
    return next((e for e in leaves if isinstance(e, NoSpace | NotFound)), leaves[0])


def _hash_file(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_HASH_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
