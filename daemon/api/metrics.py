"""`/metrics` in Prometheus' text format, and the count of requests around all routes."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator

from litestar import Controller, Response, get
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import Metric, generate_latest
from prometheus_client.registry import Collector

from daemon.api.dialects import dialect_of
from daemon.api.services import Rooms, Services
from daemon.metrics.counted import Metrics
from daemon.metrics.gathered import of_conversions, of_pulls, of_residency
from daemon.metrics.names import OTHER

# The response adds the charset.
_TEXT_FORMAT = "text/plain; version=0.0.4"


class _Scrape(Collector):
    """Everything there is at one moment."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterator[Metric]:
        services = self._services
        yield from services.metrics.registry.collect()
        yield from of_residency(services.residency, services.metrics.names)
        yield from of_conversions(services.conversions)
        yield from of_pulls(services.transfers.pulled_bytes)


class MetricsController(Controller):
    tags = ["system"]

    @get("/metrics")
    async def metrics(self, services: Rooms) -> Response[bytes]:
        """Counters since the start, and what is in memory now; a scraper's, never a client's."""
        text = generate_latest(_Scrape(services))
        return Response(text, media_type=_TEXT_FORMAT)


class CountedRequests:
    """The outermost application: what the guard refuses counts too. Labels are templates of routes."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status: int | None = None

        # No coroutine of its own: it runs for every piece of every stream.
        def watched(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            return send(message)

        try:
            await self._app(scope, receive, watched)  # pyright: ignore[reportArgumentType]
        finally:
            route = scope.get("path_template") or OTHER
            self._metrics.count_request(dialect_of(route), route, status)
