"""`/api/hearth/keys`: who else may use this daemon, for whoever may manage it."""

from __future__ import annotations

import msgspec
from litestar import Controller, Response, delete, get, post
from litestar.params import FromPath, JSONBody

from daemon.api.framing import json_response
from daemon.api.request import only_managers
from daemon.api.services import Rooms
from daemon.lan.access import KeyScope, Moment


class AddKeyRequest(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    scope: KeyScope = "use"


class AddKeyAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The only place where `key` is ever said."""

    name: str
    scope: KeyScope
    key: str


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    scope: KeyScope
    created: Moment
    last_used: Moment | None


class KeysAnswer(msgspec.Struct, frozen=True):
    keys: tuple[KeyView, ...]


class RemoveKeyAnswer(msgspec.Struct, frozen=True):
    """How many keys are left."""

    left: int


class KeyController(Controller):
    tags = ["hearth"]
    path = "/api/hearth/keys"
    guards = [only_managers]

    @get()
    async def list_keys(self, services: Rooms) -> Response[bytes]:
        keys = await services.keys.keys()
        views = (
            KeyView(name=k.name, scope=k.scope, created=k.created, last_used=k.last_used)
            for k in keys
        )
        return json_response(KeysAnswer(tuple(views)))

    @post(status_code=200)
    async def add_key(self, data: JSONBody[AddKeyRequest], services: Rooms) -> Response[bytes]:
        key = await services.keys.add(data.name, data.scope)
        return json_response(AddKeyAnswer(name=data.name, scope=data.scope, key=key))

    @delete("/{name:str}", status_code=200)
    async def remove_key(self, name: FromPath[str], services: Rooms) -> Response[bytes]:
        """Requests that run go on; the next one with this key is refused."""
        return json_response(RemoveKeyAnswer(await services.keys.remove(name)))
