"""`/api/hearth/keys`: who else may use this daemon, for whoever may manage it."""

from __future__ import annotations

import msgspec
from litestar import Controller, Response, delete, get, post
from litestar.params import FromPath, JSONBody

from daemon.api.framing import json_response
from daemon.api.request import only_managers
from daemon.api.services import Rooms
from daemon.lan.access import AccessKey, KeyScope, Moment


class AddKeyRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Without `lifetime_seconds` the key holds until it is removed."""

    name: str
    scope: KeyScope = "use"
    lifetime_seconds: float | None = None


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
    expires: Moment | None


class KeysAnswer(msgspec.Struct, frozen=True):
    keys: tuple[KeyView, ...]


class RemoveKeyAnswer(msgspec.Struct, frozen=True):
    """How many keys are left."""

    left: int


def _view(key: AccessKey) -> KeyView:
    """Everything but the digest."""
    return KeyView(
        name=key.name,
        scope=key.scope,
        created=key.created,
        last_used=key.last_used,
        expires=key.expires,
    )


class KeyController(Controller):
    tags = ["hearth"]
    path = "/api/hearth/keys"
    guards = [only_managers]

    @get()
    async def list_keys(self, services: Rooms) -> Response[bytes]:
        keys = await services.keys.keys()
        return json_response(KeysAnswer(tuple(map(_view, keys))))

    @post(status_code=200)
    async def add_key(self, data: JSONBody[AddKeyRequest], services: Rooms) -> Response[bytes]:
        key = await services.keys.add(data.name, data.scope, data.lifetime_seconds)
        return json_response(AddKeyAnswer(name=data.name, scope=data.scope, key=key))

    @delete("/{name:str}", status_code=200)
    async def remove_key(self, name: FromPath[str], services: Rooms) -> Response[bytes]:
        """Requests that run go on; the next one with this key is refused."""
        return json_response(RemoveKeyAnswer(await services.keys.remove(name)))
