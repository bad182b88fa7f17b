"""`/api/pair`: a device asks for a key of its own; `/api/hearth/pairs`: the owner's answer.

The first two routes need no key, since whoever calls them has none: their bodies are small, and what
they leave behind is bounded and short-lived.
"""

from __future__ import annotations

import msgspec
from litestar import Controller, Response, delete, get, post
from litestar.params import FromPath, JSONBody

from daemon.api.framing import json_response
from daemon.api.request import ApiRequest, only_managers
from daemon.api.services import Rooms
from daemon.lan.access import KeyScope

_MAX_BODY_BYTES = 4096


class PairRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`name`: what the device calls itself, and its key will be called."""

    name: str = ""


class PairAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """`code` is for people, `ticket` for the claim alone."""

    code: str
    ticket: str
    expires_in: float


class ClaimRequest(msgspec.Struct, frozen=True, kw_only=True):
    ticket: str = ""


class ClaimAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`status` "waiting" or "approved"; the second comes once, with the key."""

    status: str
    name: str = ""
    scope: str = ""
    key: str = ""


class WaitingDevice(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    name: str
    address: str
    age_seconds: float


class WaitingAnswer(msgspec.Struct, frozen=True):
    devices: tuple[WaitingDevice, ...]


class ApproveRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`name` in place of the one that the device gave itself."""

    code: str = ""
    scope: KeyScope = "use"
    name: str = ""


class ApproveAnswer(msgspec.Struct, frozen=True):
    name: str


class PairController(Controller):
    tags = ["hearth"]
    path = "/api/pair"
    request_max_body_size = _MAX_BODY_BYTES

    @post(status_code=200)
    async def ask(
        self, data: JSONBody[PairRequest], request: ApiRequest, services: Rooms
    ) -> Response[bytes]:
        address = request.client.host if request.client else "this machine"
        asked = services.pairing.ask(data.name, address)
        answer = PairAnswer(code=asked.code, ticket=asked.ticket, expires_in=asked.lifetime_seconds)
        return json_response(answer)

    @post("/claim", status_code=200)
    async def claim(self, data: JSONBody[ClaimRequest], services: Rooms) -> Response[bytes]:
        claim = services.pairing.claim(data.ticket)
        if claim.state == "waiting":
            return json_response(ClaimAnswer(status="waiting"))
        answer = ClaimAnswer(status="approved", name=claim.name, scope=claim.scope, key=claim.key)
        return json_response(answer)


class PairsController(Controller):
    tags = ["hearth"]
    path = "/api/hearth/pairs"
    guards = [only_managers]

    @get()
    async def waiting(self, services: Rooms) -> Response[bytes]:
        devices = (WaitingDevice(**one._asdict()) for one in services.pairing.waiting())
        return json_response(WaitingAnswer(tuple(devices)))

    @post("/approve", status_code=200)
    async def approve(self, data: JSONBody[ApproveRequest], services: Rooms) -> Response[bytes]:
        name = await services.pairing.approve(data.code, data.scope, data.name)
        return json_response(ApproveAnswer(name))

    @delete("/{code:str}", status_code=200)
    async def refuse(self, code: FromPath[str], services: Rooms) -> Response[bytes]:
        services.pairing.refuse(code)
        return json_response({})
