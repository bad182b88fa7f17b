"""`/api/create` and Hearth's own `/api/import`: progress as lines, or the last of them alone."""

from __future__ import annotations

import asyncio
import pathlib

from litestar import Controller, Response, post
from litestar.params import JSONBody

from daemon.api.framing import PROGRESS_JSON, EventAnswer
from daemon.api.ollama.create_form import CreateForm, begin_create
from daemon.api.ollama.shelf_wire import ImportRequest
from daemon.api.request import only_managers
from daemon.api.services import Rooms
from daemon.errors import NotFound
from daemon.models.optimum import environment
from daemon.models.shelving import import_file


class CreationController(Controller):
    tags = ["ollama"]
    guards = [only_managers]

    @post("/api/create", status_code=200)
    async def create(self, data: JSONBody[CreateForm], services: Rooms) -> Response[bytes]:
        statuses = await begin_create(data, services)
        return EventAnswer(statuses, stream=data.stream is not False, media_type=PROGRESS_JSON)

    @post("/api/import", status_code=200)
    async def import_local(self, data: JSONBody[ImportRequest], services: Rooms) -> Response[bytes]:
        """Takes a file of this machine, linked where that is possible, or a folder of safetensors."""
        path = pathlib.Path(data.path)
        statuses = import_file(
            services.store,
            services.conversions,
            services.creator,
            path,
            data.model,
            optimum=environment(services.config.home) if data.optimum else None,
        )
        if not await asyncio.to_thread(lambda: path.is_file() or path.is_dir()):
            raise NotFound(f"{data.path} is not a file that the daemon can see")
        return EventAnswer(statuses, stream=data.stream is not False, media_type=PROGRESS_JSON)
