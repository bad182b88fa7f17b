"""`/api/blobs/:digest`: raw bytes on their way to the store, of any size, never held whole."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from litestar import Controller, MediaType, Response, head, post
from litestar.params import FromPath

from daemon.api.request import ApiRequest, only_managers
from daemon.api.services import Rooms
from daemon.errors import Cancelled, NotFound
from daemon.models.manifest import parse_digest


def _empty(status: int) -> Response[bytes]:
    return Response(b"", status_code=status, media_type=MediaType.TEXT)


async def _body(request: ApiRequest) -> AsyncGenerator[bytes, None]:
    """The body as it comes. Raises Cancelled when the client leaves before its end."""
    while True:
        event = await request.receive()
        if event["type"] != "http.request":
            raise Cancelled
        yield event["body"]
        if not event["more_body"]:
            return


class BlobController(Controller):
    tags = ["ollama"]
    path = "/api/blobs/{digest:str}"
    guards = [only_managers]

    @head(media_type=MediaType.TEXT)
    async def has_blob(self, digest: FromPath[str], services: Rooms) -> None:
        """200 or 404."""
        if not services.store.blobs.has(parse_digest(digest)):
            raise NotFound("no such blob")

    @post(request_max_body_size=None)
    async def put_blob(
        self, digest: FromPath[str], request: ApiRequest, services: Rooms
    ) -> Response[bytes]:
        """200 when it is here already, 201 when it was stored."""
        expected = parse_digest(digest)
        if services.store.blobs.has(expected):
            return _empty(200)
        chunks: AsyncIterator[bytes] = _body(request)
        await services.store.put_blob(chunks, expected)
        return _empty(201)
