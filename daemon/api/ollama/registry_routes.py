"""`/api/pull` and `/api/push`: models to and from registries, contract.md §1.12, 1.13."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from litestar import Controller, Response, post
from litestar.params import JSONBody

from daemon.api.framing import PROGRESS_JSON, EventAnswer
from daemon.api.lookup import CLOUD_DISABLED
from daemon.api.ollama.shelf_wire import NamedRequest
from daemon.api.request import only_managers
from daemon.api.services import Rooms
from daemon.errors import Forbidden, Invalid
from daemon.models.create_request import CreateStatus
from daemon.models.name import ModelName, is_cloud_reference, parse_name


class TransferRequest(NamedRequest, frozen=True, kw_only=True):
    """`insecure` allows http. A user's name and password, sent by old clients, are not read."""

    insecure: bool = False
    stream: bool | None = None


def _name(asked: str) -> ModelName:
    if is_cloud_reference(asked):
        raise Forbidden(CLOUD_DISABLED)
    return parse_name(asked)


def _answer(statuses: AsyncGenerator[CreateStatus], request: TransferRequest) -> Response[bytes]:
    stream = request.stream is not False
    return EventAnswer(statuses, stream=stream, media_type=PROGRESS_JSON)


class RegistryController(Controller):
    tags = ["ollama"]
    guards = [only_managers]

    @post("/api/pull", status_code=200)
    async def pull(self, data: JSONBody[TransferRequest], services: Rooms) -> Response[bytes]:
        name = _name(data.asked)
        return _answer(services.transfers.pull(name, insecure=data.insecure), data)

    @post("/api/push", status_code=200)
    async def push(self, data: JSONBody[TransferRequest], services: Rooms) -> Response[bytes]:
        if not data.asked.strip():
            raise Invalid("model is required")
        name = _name(data.asked)
        return _answer(services.transfers.push(name, insecure=data.insecure), data)
