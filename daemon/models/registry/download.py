"""Fetching one blob: parts side by side, each resumed where it stopped, stalls and errors survived.

Nothing that was synced is fetched twice, across cancels, restarts and power cuts; a cancel loses
nothing that arrived. What the caller sees of the progress never runs backwards. The digest is taken
over what is on disk, behind the fetching.
"""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import random
import re
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial

import aiohttp
import msgspec

from daemon.errors import DaemonError, Internal, NoSpace, NotFound
from daemon.models.registry.client import (
    Location,
    RegistryClient,
    RegistryRefused,
    Unreachable,
)
from daemon.models.registry.digesting import FollowingDigest
from daemon.models.registry.mirrors import MirrorSearch
from daemon.models.registry.parts import Part, PartialBlob
from daemon.models.registry.threads import finished_in_thread
from daemon.models.registry.throttle import Throttle

_WRITE_BYTES = 2 << 20
_WRITE_SECONDS = 0.25
_DIGEST_SECONDS = 0.02
_TAKEN_SECONDS = 0.5
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")

Progress = Callable[[int], None]
_Open = Callable[..., contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]]


class DownloadSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`tries` counts failures in a row of one part; a stall is none of them.

    `save_seconds`: how much of the newest work a killed daemon may lose.
    """

    streams: int = 8
    tries: int = 6
    stall_seconds: float = 30.0
    first_pause_seconds: float = 1.0
    longest_pause_seconds: float = 60.0
    save_seconds: float = 0.5


class _Stalled(Exception):
    """No byte came for too long."""


class WrongContent(Internal):
    """The content is not what its digest says."""


class BlobDownload:
    """One blob's way to the disk. Owned by one task; use it as a context manager."""

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
        mirrors: MirrorSearch,
    ) -> None:
        self._client = client
        self._digest = digest
        self._throttle = throttle
        self._settings = settings
        self._progress = progress
        self._held_before = 0
        self._location: Location | None = None
        self._mirrors = mirrors
        self.partial = PartialBlob(blob, total_bytes)
        self._following = FollowingDigest(self.partial)
        self.fetched_bytes = 0

    async def __aenter__(self) -> BlobDownload:  # noqa: PYI034  # never subclassed
        """Takes up what an earlier try left; waits while another process has it. Raises NoSpace."""
        try:
            while not await finished_in_thread(self.partial.open):  # noqa: ASYNC110  # no event comes from there
                await asyncio.sleep(_TAKEN_SECONDS)
        except BaseException:
            self.partial.close()
            raise
        self._held_before = self.partial.written_bytes()
        self._show()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Lets go of the files; they stay for the next try."""
        await self._mirrors.close()
        await finished_in_thread(self._save_and_close)

    def _save_and_close(self) -> None:
        try:
            self.partial.save()
        finally:
            self.partial.close()

    async def fetch_head(self, byte_count: int) -> None:
        """The first `byte_count` bytes, so that a header can be looked at before the rest."""
        end = min(byte_count, self.partial.total_bytes)
        async with self._saving():
            for part in self.partial.parts:
                wanted = min(end - part.offset, part.size)
                if wanted > part.written:
                    await self._fetch_part(part, wanted)

    async def fetch_rest(self) -> None:
        """Everything still missing. Raises NoSpace, Internal when tries are used up."""
        gate = asyncio.Semaphore(self._settings.streams)

        async def fetch(part: Part) -> None:
            async with gate:
                await self._fetch_part(part, part.size)

        try:
            async with self._saving(), self._digesting(), asyncio.TaskGroup() as group:
                for part in self.partial.parts:
                    if not part.is_done:
                        group.create_task(fetch(part))
        except* DaemonError as failures:
            raise _first(failures) from failures

    async def verify_and_finish(self) -> None:
        """Raises WrongContent; then nothing is left of it."""
        found = await finished_in_thread(self._following.finish)
        if f"sha256:{found}" != self._digest:
            await self.discard()
            raise WrongContent(
                "digest mismatch, file must be downloaded again: "
                f"want {self._digest}, got sha256:{found}"
            )
        await finished_in_thread(self.partial.finish)

    async def discard(self) -> None:
        """Removes every trace of the blob."""
        await finished_in_thread(self.partial.discard)

    @contextlib.asynccontextmanager
    async def _saving(self) -> AsyncGenerator[None]:
        """Puts on record what came in, again and again and at the end. Raises NoSpace."""
        task = asyncio.create_task(self._keep_saving())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
            await finished_in_thread(self.partial.save)

    @contextlib.asynccontextmanager
    async def _digesting(self) -> AsyncGenerator[None]:
        """Reads back and hashes what lies behind the slowest part while the rest is fetched."""
        self._following.is_stopped = False
        task = asyncio.create_task(self._keep_digesting())
        try:
            yield
        finally:
            self._following.is_stopped = True
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()

    async def _keep_digesting(self) -> None:
        while True:
            if not await finished_in_thread(self._following.advance):
                await asyncio.sleep(_DIGEST_SECONDS)

    async def _keep_saving(self) -> None:
        while True:
            await asyncio.sleep(self._settings.save_seconds)
            with contextlib.suppress(NoSpace):  # whoever writes the data meets it too
                await finished_in_thread(self.partial.save)

    # ---- one part ----

    async def _fetch_part(self, part: Part, wanted: int) -> None:
        failures = 0
        while part.written < wanted:
            before = part.written
            try:
                await self._stream(part, wanted)
            except _Stalled:
                continue
            except (Unreachable, RegistryRefused) as error:
                failures = 1 if part.written > before else failures + 1
                self._location = None
                await self._pause_or_give_up(error, failures)

    async def _pause_or_give_up(self, error: DaemonError, failures: int) -> None:
        is_final = isinstance(error, RegistryRefused) and not is_passing(error.code)
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
        """One request for what is missing of the part; what came in is kept, however it ends."""
        await self._throttle.wait_for_quiet_end()
        while mirror := await self._mirrors.find():
            try:
                await self._take(partial(self._mirrors.open, mirror), part, wanted)
                return
            except (Unreachable, RegistryRefused, _Stalled):
                self._mirrors.give_up(mirror)
        if self._location is None:
            self._location = await self._client.locate(self._digest)
        await self._take(partial(self._client.open, self._location), part, wanted)

    async def _take(self, open_with: _Open, part: Part, wanted: int) -> None:
        """`open_with` headers: of whoever has the blob."""
        start, end = part.offset + part.written, part.offset + wanted
        async with open_with(headers={"Range": f"bytes={start}-{end - 1}"}) as answer:
            is_whole = start == 0 and end == self.partial.total_bytes
            # A server without ranges is fine for a blob that is asked for whole.
            if not (is_whole and answer.status == 200):
                _check_range(answer, start, self.partial.total_bytes)
            receiver = _Receiver(self.partial, part)
            try:
                await self._receive(receiver, end - start, answer.content)
            finally:
                await receiver.flush()

    async def _receive(
        self, receiver: _Receiver, missing: int, content: aiohttp.StreamReader
    ) -> None:
        while missing:
            chunk = await self._next_chunk(content)
            if not chunk:
                raise Unreachable("the registry ended the blob early")
            if len(chunk) > missing:
                raise RegistryRefused("the registry sent more than was asked for")
            receiver.take(chunk)
            missing -= len(chunk)
            self.fetched_bytes += len(chunk)
            self._show()
            if receiver.is_due:
                await receiver.flush()
            await self._throttle.spend(len(chunk))

    async def _next_chunk(self, content: aiohttp.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(self._settings.stall_seconds):
                return await content.readany()
        except TimeoutError as error:
            raise _Stalled from error

    def _show(self) -> None:
        self._progress(min(self._held_before + self.fetched_bytes, self.partial.total_bytes))


class _Receiver:
    """What one stream brought and the file does not have yet."""

    def __init__(self, partial: PartialBlob, part: Part) -> None:
        self._partial = partial
        self._part = part
        self._chunks: list[bytes] = []
        self._size = 0
        self._flushed_at = time.monotonic()

    def take(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._size += len(chunk)

    @property
    def is_due(self) -> bool:
        if self._size >= _WRITE_BYTES:
            return True
        return time.monotonic() - self._flushed_at > _WRITE_SECONDS

    async def flush(self) -> None:
        """Raises NoSpace."""
        chunks, self._chunks, self._size = self._chunks, [], 0
        if chunks:
            await finished_in_thread(self._partial.append, self._part, chunks)
        self._flushed_at = time.monotonic()


def is_passing(code: int) -> bool:
    """Whether trying again may help: too many requests, or the server's own trouble.

    403 and 401 of a direct address mean that it expired: it is asked for anew.
    """
    return code in (401, 403, 408, 425, 429) or code >= 500


def _check_range(answer: aiohttp.ClientResponse, start: int, total: int) -> None:
    """Raises RegistryRefused unless the answer is the very range that was asked for."""
    if answer.status == 200:
        raise RegistryRefused("the registry ignores byte ranges; this blob is too large for that")
    header = answer.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(header.strip())
    if answer.status != 206 or match is None:
        raise RegistryRefused(
            f"the registry answers {answer.status} to a request for a byte range", answer.status
        )
    if int(match[1]) != start or match[3] not in ("*", str(total)):
        raise RegistryRefused(f"the registry sent another range than asked: {header}")


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
