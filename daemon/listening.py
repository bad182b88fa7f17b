"""The HTTP end of the daemon: one socket, bound before anything else, and the server on it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Generator

import uvicorn
from litestar.types import ASGIApp

from daemon.config import Config

# Requests still running when the daemon stops are cut off after so long.
GRACE_SECONDS = 8
_KEEP_ALIVE_SECONDS = 75
_BACKLOG = 512


class ListenError(Exception):
    """The address cannot be had; the message is one sentence for the owner."""


def shown_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind_socket(config: Config) -> socket.socket:
    """A listening TCP socket; `::` takes IPv4 too. Raises ListenError."""
    where = shown_address(config.host, config.port)
    try:
        found = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        # A name such as localhost may have both families: clients of the field try IPv4 first.
        family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ListenError(f"cannot listen on {where}: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ListenError(
            f"cannot listen on {where}: {error.strerror}; HEARTH_HOST chooses another address"
        ) from error
    return listener


def _always(context: ssl.SSLContext) -> Callable[..., ssl.SSLContext]:
    """What uvicorn asks for: something that makes the context."""

    def give(*_: object) -> ssl.SSLContext:
        return context

    return give


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: when to stop is decided in one place, by `daemon.app`."""

    def __init__(self, app: ASGIApp, *, debug: bool, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                app,  # pyright: ignore[reportArgumentType]  two spellings of the same protocol
                http="httptools",
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=debug,
                server_header=False,
                # Nobody may claim another address than the one that the connection comes from.
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=GRACE_SECONDS,
                ssl_context_factory=_always(tls) if tls else None,
            )
        )
        self._is_answering = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._is_answering.set()

    async def start(self, listener: socket.socket) -> None:
        """Returns when requests are answered."""
        self._serving = asyncio.create_task(self.serve(sockets=[listener]))
        await self._is_answering.wait()

    async def stop(self) -> None:
        """No new connections; returns when the running requests have ended or were cut off."""
        self.should_exit = True
        if self._serving is not None:
            await self._serving

    async def wait_failed(self) -> None:
        """Returns only when the server has ended by itself, which it should not."""
        if self._serving is not None:
            await asyncio.wait({self._serving})
