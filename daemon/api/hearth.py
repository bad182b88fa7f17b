"""Hearth's own routes about machine and disks: what is where, what runs, what may be written."""

from __future__ import annotations

import asyncio
import pathlib

import msgspec
from litestar import Controller, Response, get, post
from litestar.params import JSONBody

from daemon.api.framing import json_response
from daemon.api.request import only_managers
from daemon.api.services import Rooms
from daemon.api.system import daemon_version
from daemon.diagnosis import diagnose
from daemon.errors import Invalid
from daemon.models.disk_use import measure

DEFAULT_STORE = "default"


class AdoptRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`path` is absolute, or "default" for the daemon's model store."""

    path: str = ""


class AdoptAnswer(msgspec.Struct, frozen=True):
    adopted: str


class HearthController(Controller):
    tags = ["hearth"]
    path = "/api/hearth"
    guards = [only_managers]

    @get("/du")
    async def disk_use(self, services: Rooms) -> Response[bytes]:
        """Paths of this machine are in it, so only this machine may ask."""
        foreign = services.foreign
        await foreign.refresh()
        use = await asyncio.to_thread(
            measure,
            services.store,
            foreign.catalogue,
            foreign.ledger,
            foreign.models(),
            services.config.artifacts,
        )
        return json_response(use)

    @get("/doctor")
    async def doctor(self, services: Rooms) -> Response[bytes]:
        machine = await services.machine()
        found = await asyncio.to_thread(
            diagnose, services.config, machine, version=daemon_version(), answers=True
        )
        return json_response(found)

    @post("/adopt", status_code=200)
    async def adopt(self, data: JSONBody[AdoptRequest], services: Rooms) -> Response[bytes]:
        """Lets `rm` delete from a folder of another program."""
        store = services.store
        root = store.root if data.path == DEFAULT_STORE else pathlib.Path(data.path)
        if not root.is_absolute():
            raise Invalid("the folder's path must be absolute")
        if await asyncio.to_thread(root.resolve) == await asyncio.to_thread(store.root.resolve):
            await store.adopt()
        else:
            await services.foreign.adopt(root)
        return json_response(AdoptAnswer(str(root)))
