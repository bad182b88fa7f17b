"""Routes that clients know and this version does not have yet: refused by name, with 501."""

from __future__ import annotations

from typing import NoReturn

from litestar import Controller, post

from daemon.api.request import ApiRequest
from daemon.errors import NotYet


class LaterController(Controller):
    tags = ["ollama"]

    @post(["/api/embed", "/api/embeddings"])
    async def refuse(self, request: ApiRequest) -> NoReturn:
        raise NotYet(f"{request.url.path} is not supported by this version yet")
