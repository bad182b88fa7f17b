"""A real HTTP server for tests, on a free port of loopback, in the test's own event loop."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from litestar.types import ASGIApp

from daemon.config import Config
from daemon.listening import HttpServer, bind_socket


def loopback_config(home: pathlib.Path, **changes: Any) -> Config:
    config = Config(
        home=home,
        models=home / "models",
        artifacts=home / "artifacts",
        host="127.0.0.1",
        port=0,
        registries=("127.0.0.1",),  # no test leaves this machine
    )
    return msgspec.structs.replace(config, **changes)


@asynccontextmanager
async def served(app: ASGIApp, host: str = "127.0.0.1") -> AsyncIterator[str]:
    """The base address, on loopback, of a server that answers with `app`."""
    with bind_socket(loopback_config(pathlib.Path(), host=host)) as listener:
        port = listener.getsockname()[1]
        server = HttpServer(app, debug=False)
        await server.start(listener)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            await server.stop()
