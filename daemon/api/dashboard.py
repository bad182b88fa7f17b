"""The dashboard: a page for people, and what it asks beside the routes that every client has.

The files hold nothing of this machine, so they need no key; what they ask for does. The page may load
and reach nothing but this daemon, and no other page may frame it.
"""

from __future__ import annotations

import hashlib
import pathlib
import time
from functools import cache
from typing import NamedTuple

import msgspec
from litestar import Controller, Response, get
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

from backends.select import Machine, RuntimeFacts
from daemon.api.callers import caller_of
from daemon.api.framing import json_response
from daemon.api.request import ApiRequest
from daemon.api.services import Rooms, Services
from daemon.api.system import daemon_version
from daemon.lan.identity import instance_name
from daemon.models.jobs import JobView
from daemon.models.manifest import parse_digest
from daemon.residency.memory import free_bytes, physical_bytes

PAGE = "/dashboard"
_FOLDER = pathlib.Path(__file__).parent.parent / "web"
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_STARTED = time.monotonic()


class _Page(NamedTuple):
    data: bytes
    media_type: str
    etag: str


@cache
def _pages() -> dict[str, _Page]:
    """By file name; read once, so that nothing else can ever be asked for."""
    found: dict[str, _Page] = {}
    for path in sorted(_FOLDER.iterdir()):
        if path.suffix in _TYPES:
            data = path.read_bytes()
            etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
            found[path.name] = _Page(data, _TYPES[path.suffix], etag)
    return found


class Runtime(msgspec.Struct, frozen=True):
    """One that can run models here, and on what."""

    name: str
    version: str
    devices: tuple[str, ...]


class RunningConversion(msgspec.Struct, frozen=True, kw_only=True):
    """`names` of the models that are made of the source; `done` and `total` are bytes."""

    source: str
    names: tuple[str, ...]
    variant: str
    phase: str
    done: int
    total: int


class ActivityAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """`problem` is why no model can be asked, "" when all is well.

    `alarms` name hardware that is not used; only those who may manage this daemon are told.
    """

    name: str
    version: str
    uptime_seconds: float
    problem: str
    alarms: tuple[str, ...]
    can_manage: bool
    runtimes: tuple[Runtime, ...]
    memory_bytes: int
    free_bytes: int
    prompt_ids: int
    completion_ids: int
    pulled_bytes: int
    conversions: tuple[RunningConversion, ...]


class DashboardController(Controller):
    tags = ["hearth"]

    @get(PAGE, include_in_schema=False)
    async def page(self, request: ApiRequest) -> Response[bytes]:
        return _sent(request, "dashboard.html")

    @get(f"{PAGE}/{{name:str}}", include_in_schema=False)
    async def file(self, request: ApiRequest, name: FromPath[str]) -> Response[bytes]:
        return _sent(request, name)

    @get("/api/activity")
    async def activity(self, request: ApiRequest, services: Rooms) -> Response[bytes]:
        """What the daemon is doing, in one look."""
        machine = await services.machine()
        can_manage = caller_of(request.scope).can_manage
        return json_response(_activity(services, machine, can_manage=can_manage))


def _sent(request: ApiRequest, name: str) -> Response[bytes]:
    page = _pages().get(name)
    if page is None:
        raise NotFoundException
    is_known = request.headers.get("if-none-match") == page.etag
    return Response(
        b"" if is_known else page.data,
        status_code=304 if is_known else 200,
        headers={**_HEADERS, "ETag": page.etag},
        media_type=page.media_type,
    )


def _activity(services: Services, machine: Machine, *, can_manage: bool) -> ActivityAnswer:
    prompt_ids, completion_ids = services.metrics.counted_ids()
    is_ready = services.readiness.is_ready
    held = sum(loaded.size for loaded in services.residency.loaded())
    return ActivityAnswer(
        name=instance_name(services.config.name),
        version=daemon_version(),
        uptime_seconds=round(time.monotonic() - _STARTED, 1),
        problem=services.residency.starter.problem
        if is_ready
        else "Hearth is starting or stopping.",
        alarms=machine.alarms() if can_manage else (),
        can_manage=can_manage,
        runtimes=tuple(_runtime(facts) for facts in machine.runtimes if facts.devices),
        memory_bytes=physical_bytes(),
        free_bytes=free_bytes(held),
        prompt_ids=prompt_ids,
        completion_ids=completion_ids,
        pulled_bytes=services.transfers.pulled_bytes,
        conversions=tuple(_conversions(services)),
    )


def _runtime(facts: RuntimeFacts) -> Runtime:
    return Runtime(facts.name, facts.version, facts.devices)


def _conversions(services: Services) -> list[RunningConversion]:
    jobs = services.conversions.jobs()
    names = _names_by_source(services) if jobs else {}
    return [_conversion(job, names.get(job.source, ())) for job in jobs]


def _names_by_source(services: Services) -> dict[str, tuple[str, ...]]:
    """The models of our own store by the digest of each of their layers, adapters among them."""
    found: dict[str, tuple[str, ...]] = {}
    for stored in services.store.manifests():
        for layer in stored.manifest.layers:
            digest = parse_digest(layer.digest)
            found[digest] = (*found.get(digest, ()), stored.name.short)
    return found


def _conversion(job: JobView, names: tuple[str, ...]) -> RunningConversion:
    return RunningConversion(
        source=job.source,
        names=names,
        variant=job.variant,
        phase=job.progress.phase,
        done=job.progress.done,
        total=job.progress.total,
    )
