"""Sending one blob: an upload session, in parts, taken up again where the registry says it stopped."""

from __future__ import annotations

import asyncio
import hashlib
import os
import pathlib
import random
import re
import urllib.parse
from collections.abc import AsyncGenerator, Callable

import aiohttp

from daemon.errors import DaemonError, Internal, NotFound
from daemon.models.manifest import Layer
from daemon.models.registry.client import Location, RegistryClient, RegistryRefused, Unreachable
from daemon.models.registry.download import DownloadSettings, is_passing
from daemon.models.registry.parts import MAX_PART_BYTES, MIN_PART_BYTES, PART_COUNT

_CHUNK_BYTES = 1 << 20
_HELD = re.compile(r"(?:bytes=)?0-(\d+)")

Show = Callable[[int], None]


class Session:
    """Where the next bytes go. `sent` are held by the registry; `md5s` are of the parts, if known."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self.sent = 0
        self.md5s: list[bytes] | None = []

    @property
    def etag(self) -> str:
        """What registries that keep parts compare; empty when this session was taken up midway."""
        if self.md5s is None:
            return ""
        joined = hashlib.md5(b"".join(self.md5s), usedforsecurity=False)
        return f"{joined.hexdigest()}-{len(self.md5s)}"


class BlobUpload:
    """One blob's way out. Owned by one task; a session that is given is tried first."""

    def __init__(
        self,
        client: RegistryClient,
        layer: Layer,
        path: pathlib.Path,
        *,
        mount_from: str,
        settings: DownloadSettings,
        show: Show,
    ) -> None:
        self._client = client
        self._layer = layer
        self._path = path
        self._mount_from = mount_from
        self._settings = settings
        self._show = show
        self.session: Session | None = None

    async def is_there(self) -> bool:
        url = self._client.url("blobs", self._layer.digest)
        async with self._client.request("HEAD", url, accepts=(404,)) as answer:
            return answer.status < 400

    async def send(self) -> None:
        """Raises Internal when tries are used up, RegistryRefused for what no try can change."""
        failures = 0
        if self.session is not None:
            await self._take_up()
        while True:
            before = self.session.sent if self.session else 0
            try:
                if await self._try():
                    self._show(self._layer.size)
                    return
            except (Unreachable, RegistryRefused, NotFound) as error:
                is_ahead = self.session is not None and self.session.sent > before
                failures = 1 if is_ahead else failures + 1
                await self._pause_or_give_up(error, failures)
                await self._take_up()

    async def _try(self) -> bool:
        """True when the registry has the blob."""
        if self.session is None:
            if await self.is_there():
                return True
            self.session = await self._begin()
        if self.session is not None:
            while self.session.sent < self._layer.size:
                await self._send_part(self.session)
            await self._commit(self.session)
        return True

    async def _begin(self) -> Session | None:
        """None when the registry mounted the blob from another of its models."""
        query = ""
        if self._mount_from:
            fields = {"mount": self._layer.digest, "from": self._mount_from}
            query = "?" + urllib.parse.urlencode(fields)
        url = self._client.url("blobs", "uploads", "") + query
        async with self._client.request("POST", url, headers={"Content-Length": "0"}) as answer:
            if answer.status == 201:
                return None
            return Session(self._next(url, answer))

    def _next(self, url: str, answer: aiohttp.ClientResponse) -> Location:
        headers = answer.headers
        return self._client.location(
            url, headers.get("Docker-Upload-Location") or headers.get("Location", "")
        )

    async def _send_part(self, session: Session) -> None:
        size = max(self._layer.size // PART_COUNT, MIN_PART_BYTES)
        start = session.sent
        end = min(start + min(size, MAX_PART_BYTES), self._layer.size)
        content = _PartContent(self._path, start, end, self._show)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(end - start),
            "Content-Range": f"{start}-{end - 1}",
            "X-Redirect-Uploads": "1",
        }
        url = session.location.url
        async with self._client.open(session.location, "PATCH", headers, content) as answer:
            session.location = self._next(url, answer)
            if answer.status == 307:
                target = self._client.location(url, answer.headers.get("Location", ""))
                await self._put_elsewhere(target, end - start, content)
        session.sent = end
        if session.md5s is not None:
            session.md5s.append(content.md5.digest())

    async def _put_elsewhere(self, target: Location, size: int, content: _PartContent) -> None:
        """The part goes to where the registry points, without our token."""
        away = Location(target.url, is_ours=False)
        async with self._client.open(away, "PUT", {"Content-Length": str(size)}, content):
            pass

    async def _commit(self, session: Session) -> None:
        url = session.location.url
        fields = {"digest": self._layer.digest}
        fields |= {"etag": session.etag} if session.etag else {}
        separator = "&" if urllib.parse.urlsplit(url).query else "?"
        committed = Location(
            url + separator + urllib.parse.urlencode(fields), session.location.is_ours
        )
        async with self._client.open(committed, "PUT", {"Content-Length": "0"}):
            pass

    async def _take_up(self) -> None:
        """Asks how much of the session arrived; without an answer a new one is begun."""
        session, self.session = self.session, None
        if session is None:
            return
        try:
            async with self._client.open(session.location) as answer:
                match = _HELD.fullmatch(answer.headers.get("Range", ""))
                # "0-0" is how registries write that they hold nothing.
                held = int(match[1]) + 1 if match and match[1] != "0" else 0
                if answer.headers.get("Location"):
                    session.location = self._next(session.location.url, answer)
        except DaemonError:
            return
        if held <= self._layer.size:
            session.md5s = session.md5s if held == session.sent else None
            session.sent = held
            self.session = session

    async def _pause_or_give_up(self, error: DaemonError, failures: int) -> None:
        if not self._is_passing(error):
            raise error
        if failures >= self._settings.tries:
            raise Internal(f"max retries exceeded: {error.message}")
        pause = self._settings.first_pause_seconds * 2 ** (failures - 1)
        pause = min(pause, self._settings.longest_pause_seconds)
        await asyncio.sleep(pause * random.uniform(0.75, 1.25))

    def _is_passing(self, error: DaemonError) -> bool:
        """Also a session that is gone, or further on than we thought; not a lack of rights."""
        if isinstance(error, NotFound):
            return self.session is not None
        if not isinstance(error, RegistryRefused):
            return True
        return error.code == 416 or (is_passing(error.code) and error.code not in (401, 403))


class _PartContent:
    """The bytes of one part, read anew for each request; `md5` is over those of the last."""

    def __init__(self, path: pathlib.Path, start: int, end: int, show: Show) -> None:
        self._path = path
        self._start = start
        self._end = end
        self._show = show
        self.md5 = hashlib.md5(usedforsecurity=False)

    def __call__(self) -> AsyncGenerator[bytes]:
        self.md5 = hashlib.md5(usedforsecurity=False)
        return self._read()

    async def _read(self) -> AsyncGenerator[bytes]:
        position = self._start
        with self._path.open("rb", buffering=0) as file:
            while position < self._end:
                chunk = await asyncio.to_thread(self._next_chunk, file.fileno(), position)
                yield chunk
                position += len(chunk)
                self._show(position)

    def _next_chunk(self, descriptor: int, position: int) -> bytes:
        chunk = os.pread(descriptor, min(_CHUNK_BYTES, self._end - position), position)
        if not chunk:
            raise Internal(f"{self._path.name} is shorter than its manifest says")
        self.md5.update(chunk)
        return chunk
