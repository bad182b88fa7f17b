"""Who may ask at all: clean paths, known hosts, known origins, keys. Plain ASGI, before any routing.

The host check keeps web pages from reaching this daemon through a name they control (DNS
rebinding); it holds at every bind. The origin check keeps pages of strangers from using it. After
them everybody but this machine needs a key, unless the owner has opened the daemon.
"""

from __future__ import annotations

import ipaddress
import posixpath
import socket
from collections.abc import Callable
from urllib.parse import quote

from litestar.datastructures import Headers
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from daemon.api.callers import judge
from daemon.api.refusals import refuse
from daemon.config import Config
from daemon.lan.addresses import local_addresses
from daemon.lan.key_ring import KeyRing

_METHODS = b"GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
_STAINLESS = (
    "Arch,Async,Custom-Poll-Interval,Helper-Method,Lang,Os,Package-Version,Poll-Helper,"
    "Retry-Count,Runtime,Runtime-Version,Timeout"
)
_ALLOWED_HEADERS = ",".join(
    [
        "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta",
        *(f"X-Stainless-{name}" for name in _STAINLESS.split(",")),
        "X-Api-Key,Anthropic-Version,Anthropic-Beta",
    ]
).encode()
_PREFLIGHT = [
    (b"access-control-allow-methods", _METHODS),
    (b"access-control-allow-headers", _ALLOWED_HEADERS),
    (b"access-control-max-age", b"43200"),
    (b"vary", b"Origin"),
    (b"vary", b"Access-Control-Request-Method"),
    (b"vary", b"Access-Control-Request-Headers"),
]
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0")
_APP_SCHEMES = ("app", "file", "tauri", "vscode-webview", "vscode-file")
_NAMES_NEVER_PUBLIC = (".localhost", ".local", ".internal")
# What tells no more than that a daemon is here, and whether it is well.
_FREE_PATHS = frozenset({"/", "/api/version", "/healthz", "/readyz", "/dashboard"})
# Whoever asks for a key has none.
_FREE_POSTS = frozenset({"/api/pair", "/api/pair/claim"})
# The dashboard's own files; what they show is asked for with a key.
_FREE_FOLDER = "/dashboard/"


def default_origins() -> tuple[str, ...]:
    """Patterns with at most one `*`: pages of this machine and desktop applications."""
    local = [f"{scheme}://{host}" for scheme in ("http", "https") for host in _LOCAL_HOSTS]
    with_port = [f"{origin}:*" for origin in local]
    return (*local, *with_port, *(f"{scheme}://*" for scheme in _APP_SCHEMES))


def origin_matches(origin: str, pattern: str) -> bool:
    before, star, after = pattern.partition("*")
    if not star:
        return origin == pattern
    long_enough = len(origin) >= len(before) + len(after)
    return long_enough and origin.startswith(before) and origin.endswith(after)


def host_without_port(host: str) -> str:
    """`[::1]:1` → `::1`, `name:1` → `name`, lower case, without the root's dot."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    name = host.partition(":")[0] if host.count(":") == 1 else host
    return name.lower().rstrip(".")


class HostCheck:
    """Decides whether a Host header names this machine and nothing a stranger could point at it."""

    def __init__(self, config: Config, addresses: Callable[[], frozenset[str]] = local_addresses):
        self._addresses = addresses
        self._names = {"", "localhost", socket.gethostname().lower(), config.host.lower()}
        if config.name:
            self._names.add(config.name.lower())

    def accepts(self, header: str) -> bool:
        host = host_without_port(header)
        if host in self._names or host.endswith(_NAMES_NEVER_PUBLIC):
            return True
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return False
        # No name stands behind a literal address, so none of these can have been rebound; the
        # private ones that are not ours are those of a container's host or a forwarding router.
        if address.is_loopback or address.is_unspecified or address.is_private:
            return True
        return str(address) in self._addresses()


def clean_path(path: str) -> str:
    """Without `//`, `.`, `..` and a trailing slash; always with exactly one leading slash."""
    return "/" + posixpath.normpath("/" + path).lstrip("/")


class Guard:
    """The outermost application. Refusals of hosts and origins have an empty body, as clients know."""

    def __init__(
        self, app: ASGIApp, config: Config, keys: KeyRing, host_check: HostCheck | None = None
    ) -> None:
        self._app = app
        self._keys = keys
        self._is_open = config.open_lan
        self._origins = (*default_origins(), *config.origins)
        self._hosts = host_check or HostCheck(config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers.from_scope(scope)
        origin, host = headers.get("origin", ""), headers.get("host", "")
        is_cross = bool(origin) and origin not in (f"http://{host}", f"https://{host}")
        if (is_cross and not self._is_allowed(origin)) or not self._hosts.accepts(host):
            await _answer(send, 403)
        elif scope["method"] == "OPTIONS":
            await _answer(send, 204, [*self._cors(origin), *_PREFLIGHT] if is_cross else [])
        elif (path := clean_path(scope["path"])) != scope["path"]:
            query = scope["query_string"].decode("latin-1")
            await _redirect(send, str(scope["method"]), path, query)
        else:
            is_read = scope["method"] in ("GET", "HEAD")
            is_free = (
                (path in _FREE_PATHS or path.startswith(_FREE_FOLDER))
                if is_read
                else scope["method"] == "POST" and path in _FREE_POSTS
            )
            await self._admit(
                is_free, scope, receive, self._sending(send, origin) if is_cross else send
            )

    async def _admit(self, is_free: bool, scope: Scope, receive: Receive, send: Send) -> None:
        caller = judge(scope, self._keys, is_open=self._is_open)
        if caller.can_use or is_free:
            await self._app(scope, receive, send)
        else:
            await refuse(scope, send)

    def _is_allowed(self, origin: str) -> bool:
        return any(origin_matches(origin, pattern) for pattern in self._origins)

    def _cors(self, origin: str) -> list[tuple[bytes, bytes]]:
        if "*" in self._origins:
            return [(b"access-control-allow-origin", b"*")]
        return [(b"access-control-allow-origin", origin.encode("latin-1"))]

    def _sending(self, send: Send, origin: str) -> Send:
        extra = self._cors(origin)
        if extra[0][1] != b"*":
            extra.append((b"vary", b"Origin"))

        async def send_with_cors(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        return send_with_cors


async def _redirect(send: Send, method: str, path: str, query: str) -> None:
    location = quote(path, safe="/:@") + (f"?{query}" if query else "")
    status = 301 if method in ("GET", "HEAD") else 307
    await _answer(send, status, [(b"location", location.encode("latin-1"))])


async def _answer(
    send: Send, status: int, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    length = [] if status == 204 else [(b"content-length", b"0")]
    await send(
        {"type": "http.response.start", "status": status, "headers": [*(headers or []), *length]}
    )
    await send({"type": "http.response.body", "body": b"", "more_body": False})
