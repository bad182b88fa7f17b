"""The one Request class of every handler: its JSON body arrives as the Struct the handler names."""

from __future__ import annotations

from typing import Any, cast

import msgspec
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.handlers import BaseRouteHandler

from daemon.api.body import read_struct
from daemon.errors import Forbidden, Invalid


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


def client_of(request: Request[Any, Any, Any]) -> str:
    """The address that the connection comes from; requests of one client share its turns."""
    return request.client.host if request.client else "local"


def is_from_this_machine(request: Request[Any, Any, Any]) -> bool:
    """True for loopback clients and for sockets without an address."""
    host = client_of(request).removeprefix("::ffff:")
    return host in ("::1", "local") or host.startswith("127.")


def require_this_machine(request: Request[Any, Any, Any]) -> None:
    """For what changes the shelf or the memory, until there are keys. Raises Forbidden."""
    if not is_from_this_machine(request):
        raise Forbidden("only clients on the daemon's own machine may do this")


def only_this_machine(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """`require_this_machine` as a guard of whole routes."""
    require_this_machine(cast("Request[Any, Any, Any]", connection))
