"""One registry, spoken to: authenticated requests, redirects under our rules, errors in its words.

A client lives for one operation (a pull or a push) and keeps its token that long. Tokens go to the
registry's own host only; a redirect to another host is followed without them.
"""

from __future__ import annotations

import contextlib
import secrets
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncGenerator, Callable, Generator, Mapping

import aiohttp
import msgspec
from yarl import URL

from daemon.errors import DaemonError, Internal, NotFound
from daemon.models.manifest import MANIFEST_TYPE
from daemon.models.name import ModelName
from daemon.models.registry.challenge import parse_challenge, token_url
from daemon.models.registry.keys import RegistryKey
from daemon.models.registry.reach import (
    PublicOnlyResolver,
    Reach,
    check_redirect_literal,
    is_private_literal,
)

DEFAULT_HOST = "registry.ollama.ai"
MAX_MANIFEST_BYTES = 4 << 20
_MAX_ERROR_BYTES = 64 << 10
_MAX_TOKEN_BYTES = 64 << 10
_MAX_REDIRECTS = 10
_REDIRECTS = (301, 302, 303, 307, 308)
_READ_BUFFER_BYTES = 1 << 20
_CONNECT_SECONDS = 30.0

# Makes the content of a request; called once a try.
Body = Callable[[], object]


class RegistryRefused(Internal):
    """The registry answered with an error status, `code`, or with something that is no answer."""

    def __init__(
        self, message: str, code: int = 0, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_seconds = retry_after_seconds


class Unreachable(Internal):
    """No answer: no route, no name, a broken connection. Worth another try."""


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""


class Location(msgspec.Struct, frozen=True):
    """Where a blob's bytes are. `is_ours` when it is the registry itself, which wants the token."""

    url: str
    is_ours: bool


class RegistryClient:
    """Owned by one operation; `async with` closes its connections."""

    def __init__(
        self,
        name: ModelName,
        *,
        key: RegistryKey,
        reach: Reach,
        insecure: bool,
        user_agent: str,
        token: str = "",
    ) -> None:
        """`token`: what the registry is shown from the first request on.

        Raises Forbidden for a registry that the owner did not allow.
        """
        reach.check_registry(name.host)
        self._name = name
        self._host = name.host
        self._key = key
        self._insecure = insecure and name.host.lower() != DEFAULT_HOST
        self._scheme = "https"
        self._token = token
        timeout = aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS)
        headers = {"User-Agent": user_agent}
        self._session = aiohttp.ClientSession(
            timeout=timeout, headers=headers, read_bufsize=_READ_BUFFER_BYTES, trust_env=True
        )
        # With a proxy it is the proxy that resolves names, and the owner who set it.
        self._has_proxy = bool(urllib.request.getproxies())
        # Where redirects lead: public addresses only, unless the registry is a private one itself.
        self._elsewhere = aiohttp.ClientSession(
            timeout=timeout,
            headers=headers,
            read_bufsize=_READ_BUFFER_BYTES,
            connector=aiohttp.TCPConnector(resolver=PublicOnlyResolver()),
        )

    async def __aenter__(self) -> RegistryClient:  # noqa: PYI034  # never subclassed
        if self._insecure:
            await self._find_scheme()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._elsewhere.close()

    async def _find_scheme(self) -> None:
        """`insecure` allows http, it does not prefer it: https first."""
        for scheme in ("https", "http"):
            self._scheme = scheme
            try:
                async with self._session.get(self._base + "/v2/", allow_redirects=False):
                    return
            except aiohttp.ClientError:
                continue
        self._scheme = "http"

    @property
    def _base(self) -> str:
        return f"{self._scheme}://{self._host}"

    def url(self, *path: str) -> str:
        """Below `/v2/<namespace>/<model>/`; the name's parts can hold nothing that needs quoting."""
        return "/".join((f"{self._base}/v2/{self._name.namespace}/{self._name.model}", *path))

    @contextlib.asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        accepts: tuple[int, ...] = (),
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """One request to the registry itself, with its token; asks for one once if told to.

        `body` makes what is sent, anew for each try. Statuses from 400 on raise RegistryRefused
        unless listed in `accepts`. Redirects are not followed. Raises Unreachable.
        """
        for is_last in (False, True):
            async with self._send(method, url, headers or {}, body) as answer:
                if answer.status == 401 and 401 not in accepts:
                    if is_last:
                        raise RegistryRefused("unauthorized: access denied", 401)
                    await self._authorize(answer.headers.get("WWW-Authenticate", ""))
                    continue
                if answer.status >= 400 and answer.status not in accepts:
                    raise await _refusal(answer)
                yield answer
                return

    @contextlib.asynccontextmanager
    async def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: Body | None
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        sent = dict(headers)
        if self._token:
            sent["Authorization"] = f"Bearer {self._token}"
        data = body() if body else None
        with unreachable_named(self._host):
            async with self._session.request(
                method, exact(url), headers=sent, data=data, allow_redirects=False
            ) as answer:
                yield answer

    async def _authorize(self, header: str) -> None:
        challenge = parse_challenge(header, self._host)
        if urllib.parse.urlsplit(challenge.realm).scheme == "http" and self._scheme == "https":
            raise RegistryRefused("unauthorized: access denied", 401)
        nonce = secrets.token_urlsafe(16)
        url = token_url(challenge, unix_seconds=int(time.time()), nonce=nonce)
        headers = {"Authorization": self._key.authorization(url)}
        with unreachable_named(self._host):
            async with self._session.get(
                exact(url), headers=headers, allow_redirects=False
            ) as answer:
                if answer.status >= 300:
                    raise await _refusal(answer)
                body = await read_bounded(answer, _MAX_TOKEN_BYTES)
        try:
            token = msgspec.json.decode(body, type=_Token)
        except msgspec.MsgspecError as error:
            raise Internal("the registry's token answer is not readable") from error
        self._token = token.token or token.access_token

    async def manifest(self) -> bytes:
        """The manifest's own bytes. Raises Internal with the text clients look for."""
        url = self.url("manifests", self._name.tag)
        try:
            async with self.request("GET", url, headers={"Accept": MANIFEST_TYPE}) as answer:
                if answer.status != 200:
                    raise RegistryRefused(f"{answer.status}: unexpected redirect", answer.status)
                return await read_bounded(answer, MAX_MANIFEST_BYTES)
        except DaemonError as error:
            raise Internal(f"pull model manifest: {error.message}") from error

    async def put_manifest(self, data: bytes) -> None:
        """The last step of a push: with it the model has its name there."""
        url = self.url("manifests", self._name.tag)
        headers = {"Content-Type": MANIFEST_TYPE}
        async with self.request("PUT", url, headers=headers, body=lambda: data):
            pass

    async def locate(self, digest: str) -> Location:
        """Follows redirects by hand up to the one that leaves the registry's host.

        Asks with GET, since addresses that are signed are so for one method; one byte, since
        registries without redirects answer with the blob itself. Raises NotFound, RegistryRefused.
        """
        url = self.url("blobs", digest)
        first_byte = {"Range": "bytes=0-0"}
        for _ in range(_MAX_REDIRECTS):
            async with self.request("GET", url, headers=first_byte, accepts=(416,)) as answer:
                if answer.status not in _REDIRECTS:
                    return Location(url, is_ours=True)
                location = self.location(url, answer.headers.get("Location", ""))
            if not location.is_ours:
                return location
            url = location.url
        raise RegistryRefused("the registry redirects in circles")

    def _redirected(self, url: str, location: str) -> str:
        target = urllib.parse.urljoin(url, location)
        parts = urllib.parse.urlsplit(target)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RegistryRefused("the registry redirects to no address")
        if parts.scheme == "http" and self._scheme == "https":
            raise RegistryRefused("the registry redirects from https to http")
        if not self._is_private():
            check_redirect_literal(parts.hostname)
        return target

    def _is_private(self) -> bool:
        """A registry on an address of the LAN may redirect within it: it was asked for by name."""
        host = urllib.parse.urlsplit(self._base).hostname or ""
        return self._insecure or host == "localhost" or is_private_literal(host)

    def location(self, base: str, target: str) -> Location:
        """An address that the registry gave in an answer to `base`. Raises as a redirect does."""
        url = self._redirected(base, target)
        return Location(url, urllib.parse.urlsplit(url).netloc.lower() == self._host.lower())

    @contextlib.asynccontextmanager
    async def open(
        self,
        location: Location,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """A request to where a blob is, or goes; the caller looks at the status of success.

        Raises RegistryRefused, Unreachable.
        """
        if location.is_ours:
            async with self.request(method, location.url, headers=headers, body=body) as answer:
                yield answer
            return
        is_free = self._is_private() or self._has_proxy
        session = self._session if is_free else self._elsewhere
        data, url = body() if body else None, exact(location.url)
        with unreachable_named(urllib.parse.urlsplit(location.url).netloc):
            async with session.request(
                method, url, headers=dict(headers or {}), data=data, allow_redirects=False
            ) as answer:
                if answer.status >= 300:
                    raise await _refusal(answer)
                yield answer


def exact(url: str) -> URL:
    """The address as it was given: signatures cover its very characters."""
    return URL(url, encoded=True)


@contextlib.contextmanager
def unreachable_named(host: str) -> Generator[None]:
    """Turns what the HTTP library raises into Unreachable."""
    try:
        yield
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise Unreachable(f"{host}: {error or type(error).__name__}") from error


async def read_bounded(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """The whole body. Raises RegistryRefused when it is longer than `most` bytes."""
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > most:
            raise RegistryRefused(f"the registry's answer is over {most} bytes", answer.status)
    return bytes(body)


async def _refusal(answer: aiohttp.ClientResponse) -> DaemonError:
    if answer.status == 404:
        return NotFound("file does not exist")
    body = await answer.content.read(_MAX_ERROR_BYTES)
    text = body.decode(errors="replace").strip()
    after = answer.headers.get("Retry-After", "")
    seconds = float(after) if after.isdecimal() else None
    return RegistryRefused(f"{answer.status}: {text}", answer.status, seconds)
