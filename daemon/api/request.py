"""The one Request class of every handler: its JSON body arrives as the Struct the handler names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar, cast

import msgspec
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.handlers import BaseRouteHandler

from daemon.api.body import read_struct
from daemon.api.callers import caller_of
from daemon.errors import Forbidden, Invalid

_T = TypeVar("_T")
_S = TypeVar("_S", bound=msgspec.Struct)
# A body from here on has images in it, and takes a while to read.
_LARGE_BYTES = 1 << 20


class ApiRequest(Request[Any, Any, State]):
    """Decodes by `daemon.api.body` what a handler asks for with its parameter `data`."""

    def _wanted_struct(self) -> type[msgspec.Struct] | None:
        field = self.route_handler.parsed_data_field
        wanted: Any = field.annotation if field else None
        is_struct = isinstance(wanted, type) and issubclass(wanted, msgspec.Struct)
        return cast("type[msgspec.Struct]", wanted) if is_struct else None

    async def body(self) -> bytes:
        """The whole body; an empty one is refused here, before Litestar calls it optional.

        A controller whose dialect has another text for that gives it as `opt["empty_body"]`.
        """
        coding = self.headers.get("content-encoding", "identity")
        if coding != "identity" and self._wanted_struct():
            raise Invalid(f"Content-Encoding {coding} is not supported, send the body as it is")
        body = await super().body()
        if self._wanted_struct() and not body.strip():
            raise Invalid(self.route_handler.opt.get("empty_body", "missing request body"))
        return body

    async def json(self) -> Any:
        wanted = self._wanted_struct()
        if wanted is None:
            return await super().json()
        return read_struct(await self.body(), wanted)

    async def apart(self, read: Callable[[_S], _T], data: _S) -> _T:
        """What `read`, a pure function, makes of the body; a large one does not hold up others."""
        if len(await self.body()) < _LARGE_BYTES:
            return read(data)
        return await asyncio.to_thread(read, data)


def client_of(request: Request[Any, Any, Any]) -> str:
    """The key's name, else the address that the connection comes from; one client shares its turns.

    Behind a proxy all have one address, and a phone may have several.
    """
    if key := caller_of(request.scope).key:
        return f"key:{key}"
    return request.client.host if request.client else "local"


def require_manager(connection: ASGIConnection[Any, Any, Any, Any]) -> None:
    """For what changes the shelf or the memory, or tells paths of this machine. Raises Forbidden."""
    caller = caller_of(connection.scope)
    if caller.can_manage:
        return
    if caller.key:
        raise Forbidden(
            f"the key '{caller.key}' has the scope 'use', and this needs the scope 'manage'"
        )
    raise Forbidden(
        "only clients on the daemon's own machine may do this, or with a key of the scope 'manage'"
    )


def only_managers(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """`require_manager` as a guard of whole routes."""
    require_manager(connection)
