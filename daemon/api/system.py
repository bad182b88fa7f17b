"""Routes about the daemon itself: is it there, which version, is it ready. No model is touched."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import msgspec
from litestar import Controller, HttpMethod, MediaType, Response, get, post, route

from daemon.api.framing import json_response
from daemon.api.services import Rooms
from daemon.residency.queue import QueuedRequest

# The HTTP server leaves the body out of an answer to HEAD.
READ = (HttpMethod.GET, HttpMethod.HEAD)


def daemon_version() -> str:
    """Dotted numbers: clients split it into integers."""
    try:
        return version("hearth")
    except PackageNotFoundError:
        return "0.0.0"


class VersionAnswer(msgspec.Struct, frozen=True):
    version: str


class CloudState(msgspec.Struct, frozen=True):
    disabled: bool = True
    source: str = "config"


class StatusAnswer(msgspec.Struct, frozen=True):
    cloud: CloudState = CloudState()


class RecommendationsAnswer(msgspec.Struct, frozen=True):
    recommendations: tuple[str, ...] = ()


class Health(msgspec.Struct, frozen=True):
    status: str


class ReadyAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """`reason` says what is in the way."""

    status: str
    reason: str = ""


class QueueAnswer(msgspec.Struct, frozen=True):
    waiting: tuple[QueuedRequest, ...]


class UnauthorizedAnswer(msgspec.Struct, frozen=True):
    """Clients turn it into a sign-in hint; there is no account to sign in to."""

    error: str = "unauthorized"
    signin_url: str = ""


class SystemController(Controller):
    tags = ["system"]

    @route("/", http_method=READ, media_type=MediaType.TEXT)
    async def root(self) -> str:
        return "Ollama is running"

    @route("/api/version", http_method=READ)
    async def version(self) -> VersionAnswer:
        return VersionAnswer(daemon_version())

    @get("/api/status")
    async def status(self) -> StatusAnswer:
        return StatusAnswer()

    @get("/api/experimental/model-recommendations")
    async def recommendations(self) -> RecommendationsAnswer:
        return RecommendationsAnswer()

    @post("/api/me")
    async def account(self) -> Response[bytes]:
        return json_response(UnauthorizedAnswer(), 401)

    @get("/api/queue")
    async def queue(self, services: Rooms) -> QueueAnswer:
        """Who waits for a model, next one first; ages in seconds."""
        return QueueAnswer(tuple(services.residency.queue()))

    @get("/healthz")
    async def is_alive(self) -> Health:
        """The loop turns: that is all that this says."""
        return Health("ok")

    @get("/readyz")
    async def is_ready(self, services: Rooms) -> Response[bytes]:
        """200 when models can be asked; 503 while starting or stopping, or when no worker starts."""
        if not services.readiness.is_ready:
            return json_response(
                ReadyAnswer("not ready", "the daemon is starting or stopping"), 503
            )
        starter = services.residency.starter
        starter.prove()
        if starter.problem:
            return json_response(ReadyAnswer("not ready", starter.problem), 503)
        return json_response(ReadyAnswer("ready"))
