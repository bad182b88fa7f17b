"""All routes as one ASGI application: controllers, error forms, and the guard around them."""

from __future__ import annotations

from typing import Any

from litestar import Litestar, MediaType, Request, Response
from litestar.di import Provide
from litestar.exceptions import MethodNotAllowedException, NotFoundException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.types import ASGIApp, ControllerRouterHandler

from daemon.api.anthropic import CONTROLLERS as ANTHROPIC_CONTROLLERS
from daemon.api.dashboard import DashboardController
from daemon.api.framing import LINES, error_handlers
from daemon.api.guard import Guard
from daemon.api.hearth import HearthController
from daemon.api.key_routes import KeyController
from daemon.api.metrics import CountedRequests, MetricsController
from daemon.api.ollama import CONTROLLERS as OLLAMA_CONTROLLERS
from daemon.api.openai import CONTROLLERS as OPENAI_CONTROLLERS
from daemon.api.pair_routes import PairController, PairsController
from daemon.api.registry_share import RegistryShareController
from daemon.api.request import ApiRequest
from daemon.api.services import Services
from daemon.api.system import SystemController, daemon_version

CONTROLLERS: tuple[ControllerRouterHandler, ...] = (
    SystemController,
    MetricsController,
    HearthController,
    DashboardController,
    KeyController,
    PairController,
    PairsController,
    RegistryShareController,
    *OLLAMA_CONTROLLERS,
    *ANTHROPIC_CONTROLLERS,
    *OPENAI_CONTROLLERS,
)
# Images travel inside JSON; what is larger could not be sent on to a worker anyway.
MAX_BODY_BYTES = 64 << 20

_AnyRequest = Request[Any, Any, Any]


def _text(status: int, text: str) -> Response[str]:
    return Response(text, status_code=status, media_type=MediaType.TEXT)


def _no_page(_: _AnyRequest, __: Exception) -> Response[str]:
    return _text(404, "404 page not found")


def _wrong_method(_: _AnyRequest, __: Exception) -> Response[str]:
    return _text(405, "405 method not allowed")


def create_api(services: Services) -> ASGIApp:
    """The application that the HTTP server runs. Starts nothing by itself."""
    guard = Guard(create_routes(services), services.config, services.keys)
    return CountedRequests(guard, services.metrics)


def create_routes(services: Services) -> Litestar:
    """Every route, without the guard around them: all callers are strangers to it."""

    async def provide_services() -> Services:
        return services

    return Litestar(
        CONTROLLERS,
        request_class=ApiRequest,
        dependencies={"services": Provide(provide_services)},
        exception_handlers={
            NotFoundException: _no_page,
            MethodNotAllowedException: _wrong_method,
            **error_handlers(LINES),
        },
        request_max_body_size=MAX_BODY_BYTES,
        openapi_config=OpenAPIConfig(
            title="Hearth",
            version=daemon_version(),
            path="/openapi",
            render_plugins=[JsonRenderPlugin()],
        ),
        logging_config=None,
    )
