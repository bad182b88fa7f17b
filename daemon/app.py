"""The composition root: makes every room, starts them in order, stops them in the reverse.

The only file that names the concrete parts. The order is what clients can rely on: a taken port is
an error before anything is touched, nothing is announced before it answers, and the goodbye goes
out before the door closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping

import uvloop

from daemon.api.application import create_api
from daemon.api.services import Services
from daemon.api.system import daemon_version
from daemon.choice import BackendChoice
from daemon.config import EXIT_CONFIG, Config, ConfigError, check_listening, load_config
from daemon.errors import DaemonError
from daemon.lan.access import KeysDamaged, read_keys
from daemon.lan.key_ring import KeyRing
from daemon.listening import HttpServer, ListenError, bind_socket, shown_address
from daemon.logs import set_up_logging
from daemon.models.artifact_collection import ArtifactCollector
from daemon.models.bundled import add_bundled_model
from daemon.models.create import Creator
from daemon.models.foreign.shelf import ForeignShelf
from daemon.models.jobs import Conversions
from daemon.models.quantising import sweep_quantising
from daemon.models.store import open_store
from daemon.models.transfers import Transfers
from daemon.notify import notify
from daemon.residency.memory_artifacts import MemoryArtifacts
from daemon.residency.placement import ArtifactPlacer
from daemon.residency.residency import Residency
from daemon.residency.settings import ResidencySettings
from daemon.tls import Certificate, certificate_of
from daemon.watchdog import feed_watchdog, watchdog_seconds

log = logging.getLogger(__name__)

EXIT_FAILED = 1
ANSWER_GRACE_SECONDS = 3.0


def serve_command(flags: Mapping[str, object]) -> int:
    """`hearth serve`: the exit code. `flags` as `load_config` takes them."""
    try:
        config = load_config(os.environ, flags)
        set_up_logging(debug=config.debug)
        return serve(config)
    except ConfigError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201  the log may not be set up yet
        return EXIT_CONFIG


def serve(config: Config) -> int:
    """Runs the daemon until SIGTERM or SIGINT. Raises ConfigError before anything is touched."""
    try:
        check_listening(config, has_keys=bool(read_keys(config.home)))
    except KeysDamaged as error:
        raise ConfigError(f"{error} ({config.home})") from error
    certificate = certificate_of(config)
    try:
        with (
            bind_socket(config) as listener,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            return runner.run(_run(config, listener, certificate))
    except (ListenError, DaemonError) as error:
        log.error("%s", error)
        return EXIT_FAILED


async def _run(config: Config, listener: socket.socket, certificate: Certificate | None) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        stopping = asyncio.create_task(stop.wait())
        serving = asyncio.create_task(_serve(config, listener, certificate, stack))
        await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            stopping.cancel()
            serving.result()  # raises what the start failed with
            return EXIT_FAILED
        notify("STOPPING=1")
        log.info("stopping")
        serving.cancel()
        await asyncio.wait({serving})
    return 0


async def _serve(
    config: Config,
    listener: socket.socket,
    certificate: Certificate | None,
    stack: contextlib.AsyncExitStack,
) -> None:
    """Starts everything in order; what is to be stopped lies on `stack`. Returns only on failure."""
    services, choice = await open_rooms(config, stack)
    server = await open_door(services, choice, listener, stack, certificate)
    await server.wait_failed()
    log.error("the HTTP server ended by itself")


async def open_rooms(
    config: Config, stack: contextlib.AsyncExitStack
) -> tuple[Services, BackendChoice]:
    """Shelf, conversions, residency; `stack` closes them in the reverse order."""
    store = await open_store(
        config.models, is_foreign=config.models_foreign, no_prune=config.no_prune
    )

    def is_busy() -> bool:
        return any(model.users for model in residency.loaded())

    foreign = ForeignShelf(store, config.home, config.foreign, is_auto=config.foreign_auto)
    stack.push_async_callback(foreign.close)
    conversions = Conversions(
        home=config.home,
        artifacts=config.artifacts,
        blob_path=foreign.blob_path,
        is_busy=is_busy,
    )
    await conversions.start()
    await sweep_quantising(store)
    stack.push_async_callback(conversions.close)
    choice = BackendChoice(conversions, config.backend)
    stack.push_async_callback(choice.close)
    residency = await open_residency(config, conversions, choice, stack)
    transfers = Transfers(config, store, conversions, choice.target_for, version=daemon_version())
    stack.push_async_callback(transfers.close)
    creator = Creator(store, conversions, choice.target_for, transfers.pull, foreign)
    collector = ArtifactCollector(
        store, foreign, conversions, home=config.home, artifacts=config.artifacts
    )
    stack.push_async_callback(collector.close)
    await foreign.start()
    collector.start()
    keys = KeyRing(config.home)
    stack.push_async_callback(keys.close)
    services = Services(
        config,
        store,
        conversions,
        creator,
        residency,
        transfers,
        foreign,
        collector,
        keys,
        machine=choice.machine,
    )
    return services, choice


async def open_residency(
    config: Config,
    conversions: Conversions,
    choice: BackendChoice,
    stack: contextlib.AsyncExitStack,
) -> Residency:
    memory = MemoryArtifacts(config.memory_artifacts, conversions)
    await memory.start()
    stack.push_async_callback(memory.close)
    placer = ArtifactPlacer(
        conversions,
        choice.for_model,
        memory,
        avoid=choice.remember_failure,
        gave_back=choice.gave_back,
    )
    residency = Residency(ResidencySettings.of(config), placer)
    stack.push_async_callback(residency.close)
    return residency


async def open_door(
    services: Services,
    choice: BackendChoice,
    listener: socket.socket,
    stack: contextlib.AsyncExitStack,
    certificate: Certificate | None = None,
) -> HttpServer:
    """HTTP, then the announcement, then the word to the service manager."""
    if services.store.is_writable and services.store.is_empty():
        await add_bundled_model(services.store, services.conversions, services.creator)
    tls = certificate.context if certificate else None
    server = HttpServer(create_api(services), debug=services.config.debug, tls=tls)
    await server.start(listener)
    stack.push_async_callback(_close_door, server, services)
    services.readiness.is_ready = True
    host, port = listener.getsockname()[:2]
    if not services.config.is_loopback:
        await _announce(services, choice, port, stack)
    log.info("listening on %s", shown_address(host, port))
    if certificate is not None:
        stack.callback(asyncio.create_task(certificate.follow()).cancel)
    notify("READY=1")
    _start_watchdog(services, stack)
    return server


def _start_watchdog(services: Services, stack: contextlib.AsyncExitStack) -> None:
    """Fed until everything else is closed, and not while a worker is beyond recovery."""

    def obstacle() -> str:
        lost = services.residency.starter.lost
        return f"killed workers live on: {lost}" if lost else ""

    if limit := watchdog_seconds(os.environ):
        feeding = asyncio.create_task(feed_watchdog(limit, obstacle))
        stack.callback(feeding.cancel)


async def _close_door(server: HttpServer, services: Services) -> None:
    """Running answers get a moment to end; then their workers end, which ends them with an error."""
    services.readiness.is_ready = False
    closing = asyncio.create_task(server.stop())
    await asyncio.wait({closing}, timeout=ANSWER_GRACE_SECONDS)
    await services.residency.close()
    await closing


async def _announce(
    services: Services, choice: BackendChoice, port: int, stack: contextlib.AsyncExitStack
) -> None:
    # Only daemons that are open to the network need multicast at all.
    from daemon.lan.announce import Announcer, Facts

    facts = Facts(backend=await choice.announced(), models=len(services.store.names()))
    announcer = Announcer(services.config, port, facts)
    stack.push_async_callback(announcer.stop)
    await announcer.start()
