"""Neighbours that may have a blob already: asked before the registry, believed only by the digest.

What a model is, its manifest, is the registry's to say; a mirror gives bytes. One that fails, stalls
or lies is left out and the registry goes on where it stopped. `lan` among the mirrors stands for
whoever announces on this network that they share, and asks for no key.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

import aiohttp

from daemon.errors import DaemonError
from daemon.lan.browse import Peer, discover
from daemon.models.registry.client import Unreachable, exact, unreachable_named
from daemon.models.registry.mirror_address import LAN, Mirror, parse_mirror

log = logging.getLogger(__name__)

# They are near: one that takes longer is no gain.
_ANSWER_SECONDS = 3.0
_BROWSE_SECONDS = 1.5
_FRESH_SECONDS = 60.0
_MOST_OF_LAN = 8
_REMEMBERED = 256
_READ_BUFFER_BYTES = 1 << 20

Browse = Callable[[float], Awaitable[list[Peer]]]


class Mirrors:
    """Shared by every pull. `distrust` lasts until the daemon ends."""

    def __init__(self, wanted: tuple[str, ...] = (), browse: Browse = discover) -> None:
        """Raises ValueError for what is no mirror."""
        self._named = tuple(parse_mirror(text) for text in wanted if text != LAN)
        self._asks_lan = LAN in wanted
        self._browse = browse
        self._found: tuple[Mirror, ...] = ()
        self._found_at = -_FRESH_SECONDS
        self._distrusted: set[str] = set()
        self._gave: dict[str, set[Mirror]] = {}
        self._looking = asyncio.Lock()

    def key_for(self, host: str) -> str:
        """For a registry that is one of the named mirrors; else "" ."""
        return next((one.key for one in self._named if one.host.lower() == host.lower()), "")

    def distrust(self, digest: str) -> bool:
        """Who gave some of this blob is not asked again; False where nobody did."""
        liars = self._gave.pop(digest, set())
        for mirror in liars:
            log.warning("%s gave a wrong blob: not asked again", mirror.host)
            self._distrusted.add(mirror.url)
        return bool(liars)

    def note(self, digest: str, mirror: Mirror) -> None:
        """It is about to give some of this blob; kept for the newest blobs."""
        self._gave[digest] = self._gave.pop(digest, set()) | {mirror}
        while len(self._gave) > _REMEMBERED:
            del self._gave[next(iter(self._gave))]

    async def all(self) -> list[Mirror]:
        """The named ones first."""
        if self._asks_lan:
            await self._look_around()
        known = dict.fromkeys((*self._named, *self._found))
        return [mirror for mirror in known if mirror.url not in self._distrusted]

    async def _look_around(self) -> None:
        async with self._looking:
            if time.monotonic() - self._found_at < _FRESH_SECONDS:
                return
            try:
                self._found = sharing(await self._browse(_BROWSE_SECONDS))
            except DaemonError as error:
                log.info("no mirror was looked for on the network: %s", error)
            self._found_at = time.monotonic()

    def search(self, digest: str, size: int, user_agent: str) -> MirrorSearch:
        return MirrorSearch(self, digest, size, user_agent)


def sharing(peers: list[Peer]) -> tuple[Mirror, ...]:
    """Those who say that they share without a key, by their first address.

    None with TLS: no certificate is for an address out of an announcement.
    """
    found = [
        Mirror(f"http://{_literal(peer.addresses[0])}:{peer.port}")
        for peer in peers
        if peer.properties.get("share") == "1"
        and peer.properties.get("auth") == "none"
        and peer.properties.get("tls", "0") == "0"
    ]
    return tuple(found[:_MOST_OF_LAN])


def _literal(address: str) -> str:
    return f"[{address}]" if ":" in address else address


class MirrorSearch:
    """One blob's: which mirror has it. `close` at the end."""

    def __init__(self, mirrors: Mirrors, digest: str, size: int, user_agent: str) -> None:
        self._mirrors = mirrors
        self._digest = digest
        self._size = size
        self._user_agent = user_agent
        self._left: list[Mirror] | None = None
        self._session: aiohttp.ClientSession | None = None
        self._finding = asyncio.Lock()
        self._chosen: Mirror | None = None

    async def find(self) -> Mirror | None:
        """The first that has the whole blob and was not given up; None: the registry's turn."""
        async with self._finding:
            if self._left is None:
                self._left = await self._mirrors.all()
            while self._left:
                first = self._left[0]
                if first == self._chosen or await self._has(first):
                    self._chosen = first
                    self._mirrors.note(self._digest, first)
                    return first
                self._left.remove(first)
            return None

    def give_up(self, mirror: Mirror) -> None:
        if self._left and mirror in self._left:
            log.info("%s is not asked for this blob any more", mirror.host)
            self._left.remove(mirror)

    async def _has(self, mirror: Mirror) -> bool:
        try:
            async with (
                asyncio.timeout(_ANSWER_SECONDS),
                self._request("HEAD", mirror, {}) as answer,
            ):
                return answer.status == 200 and answer.content_length == self._size
        except (Unreachable, TimeoutError):
            return False

    @contextlib.asynccontextmanager
    async def _request(
        self, method: str, mirror: Mirror, headers: Mapping[str, str]
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, connect=_ANSWER_SECONDS)
            self._session = aiohttp.ClientSession(
                timeout=timeout,
                headers={"User-Agent": self._user_agent},
                read_bufsize=_READ_BUFFER_BYTES,
            )
        key = {"Authorization": f"Bearer {mirror.key}"} if mirror.key else {}
        url = exact(mirror.blob_url(self._digest))
        with unreachable_named(mirror.host):
            async with self._session.request(
                method, url, headers={**headers, **key}, allow_redirects=False
            ) as answer:
                yield answer

    @contextlib.asynccontextmanager
    async def open(
        self, mirror: Mirror, headers: Mapping[str, str]
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """The blob, or the range of it that `headers` ask for. Raises Unreachable."""
        async with self._request("GET", mirror, headers) as answer:
            if answer.status not in (200, 206):
                raise Unreachable(f"{mirror.host}: status {answer.status}")
            yield answer

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
