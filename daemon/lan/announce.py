"""Says on the local network that this daemon is here, and takes it back when it stops.

Started only when the socket listens beyond loopback and HTTP answers. Whatever goes wrong here is a
line in the log: nothing on the network can stop the daemon. Interfaces are looked at every
`POLL_SECONDS`, off the loop, and a change counts when it is still there `DAMPING_SECONDS` later.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, version
from typing import cast

import msgspec
from zeroconf import ServiceInfo
from zeroconf.asyncio import AsyncZeroconf

from daemon.config import Config
from daemon.lan.addresses import Adapter, Reachable, plan_addresses, read_adapters
from daemon.lan.identity import LanIdentity, load_identity, save_identity

SERVICE = "_ollama._tcp.local."
# The same instance for whoever looks for web pages.
WEB_SERVICE = "_http._tcp.local."
POLL_SECONDS = 20.0
DAMPING_SECONDS = 2.0
_GOODBYE_SECONDS = 3.0
_log = logging.getLogger("hearth.lan")
# The library types what these return only in part.
_Registering = Callable[..., Awaitable[Awaitable[object]]]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the announcement says beside the fixed facts. Empty and None are left out."""

    backend: str = ""
    models: int | None = None


def service_properties(config: Config, identity: LanIdentity, facts: Facts) -> dict[str, str]:
    """The TXT record: public, static, no secrets; `txtvers` first. Keys have at most 9 characters."""
    try:
        release = version("hearth")
    except PackageNotFoundError:
        release = "0.0.0"
    properties = {
        "txtvers": "1",
        "v": release,
        "api": "ollama,openai,anthropic",
        "path": "/",
        "auth": "none" if config.open_lan else "bearer",
        "tls": "1" if config.tls_certificate else "0",
        "share": "1" if config.share else "",
        "id": identity.id,
        "be": facts.backend,
        "n": "" if facts.models is None else str(facts.models),
    }
    return {key: value for key, value in properties.items() if value}


class Announcer:
    """`start` returns at once; `stop` sends the goodbyes. Owned by the event loop."""

    def __init__(
        self,
        config: Config,
        port: int,
        facts: Facts = Facts(),  # noqa: B008  (frozen)
        *,
        poll_seconds: float = POLL_SECONDS,
        damping_seconds: float = DAMPING_SECONDS,
        adapters: Callable[[], list[Adapter]] = read_adapters,
    ) -> None:
        self._config = config
        self._port = port
        self._facts = facts
        self._poll_seconds = poll_seconds
        self._damping_seconds = damping_seconds
        self._adapters = adapters
        self._bind_host = ""
        self._identity: LanIdentity | None = None
        self._zeroconf: AsyncZeroconf | None = None
        self._infos: list[ServiceInfo] = []
        self._said = Reachable()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        name = self._identity.name if self._identity else "nobody yet"
        return f"<Announcer {name} on {' '.join(self._said.addresses) or 'no address'}>"

    @property
    def addresses(self) -> tuple[str, ...]:
        """What is announced now; empty before the first announcement and without a network."""
        return self._said.addresses

    @property
    def name(self) -> str:
        """The instance name in use; empty until it is known."""
        return self._identity.name if self._identity else ""

    async def start(self) -> None:
        """Begins to announce, in the background; does nothing for a socket on loopback."""
        if self._task is None and not self._config.is_loopback:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Goodbye. Takes at most a few seconds; may be called again."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait({self._task})
        self._task = None
        try:
            async with asyncio.timeout(_GOODBYE_SECONDS):
                await self._withdraw()
        except Exception as error:  # noqa: BLE001  (the module's promise)
            _log.warning("no goodbye on the network: %s", error)

    async def _run(self) -> None:
        """Registers, then follows the interfaces; whatever fails is tried again at the next look."""
        while True:
            try:
                await self._follow()
            except Exception as error:  # noqa: BLE001  (the module's promise)
                _log.warning("not announced on the network: %s", error or type(error).__name__)
                with contextlib.suppress(Exception):
                    await self._withdraw()
            await asyncio.sleep(self._poll_seconds)

    async def _follow(self) -> None:
        if self._identity is None:
            self._identity = await asyncio.to_thread(
                load_identity, self._config.home, self._config.name
            )
            self._bind_host = await asyncio.to_thread(resolve_host, self._config.host)
        seen = await self._look()
        if seen == self._said:
            return
        if self._said.addresses:
            await asyncio.sleep(self._damping_seconds)
            if await self._look() != seen:
                return  # still moving: a hand-over is several changes
        await self._say(seen, self._identity)

    async def _look(self) -> Reachable:
        return plan_addresses(self._bind_host, await asyncio.to_thread(self._adapters))

    async def _say(self, seen: Reachable, identity: LanIdentity) -> None:
        if not seen.addresses:
            _log.info("no address that others could reach: not announced")
            await self._withdraw()
        elif self._zeroconf is None:
            await self._register(seen, identity)
        else:
            await self._move(self._zeroconf, seen, identity)
        self._said = seen

    async def _register(self, seen: Reachable, identity: LanIdentity) -> None:
        self._zeroconf = AsyncZeroconf(interfaces=list(seen.interfaces))
        info = self._info(SERVICE, seen, identity)
        sent = await _register_service(self._zeroconf, info)
        identity = await self._remember(info, identity)
        web = self._info(WEB_SERVICE, seen, identity)
        web_sent = await _register_service(self._zeroconf, web)
        self._infos = [info, web]
        await asyncio.gather(sent, web_sent)
        _log.info("announced as %r on %s", identity.name, ", ".join(seen.addresses))

    async def _remember(self, info: ServiceInfo, identity: LanIdentity) -> LanIdentity:
        """Takes over the name that registering has arrived at, which differs after a conflict."""
        name = info.name.removesuffix(f".{info.type}")
        if name != identity.name:
            _log.warning("the name %r is taken on this network: now %r", identity.name, name)
        self._identity = msgspec.structs.replace(identity, name=name)
        await asyncio.to_thread(save_identity, self._config.home, self._identity)
        return self._identity

    async def _move(self, zeroconf: AsyncZeroconf, seen: Reachable, identity: LanIdentity) -> None:
        """Other addresses or interfaces, the same names."""
        await zeroconf.async_update_interfaces(list(seen.interfaces))
        self._infos = [
            self._info(info.type, seen, identity, instance=info.name) for info in self._infos
        ]
        for info in self._infos:
            await _update_service(zeroconf, info)
        _log.info("now announced on %s", ", ".join(seen.addresses))

    async def _withdraw(self) -> None:
        zeroconf, self._zeroconf = self._zeroconf, None
        self._infos, self._said = [], Reachable()
        if zeroconf is None:
            return
        try:
            await zeroconf.async_unregister_all_services()
        finally:
            await zeroconf.async_close()

    def _info(
        self, service: str, seen: Reachable, identity: LanIdentity, instance: str = ""
    ) -> ServiceInfo:
        return ServiceInfo(
            service,
            instance or f"{identity.name}.{service}",
            port=self._port,
            properties=self._properties(service, identity),
            # Not the host's own name: its records may be another responder's.
            server=f"hearth-{identity.id}.local.",
            parsed_addresses=list(seen.addresses),
        )

    def _properties(self, service: str, identity: LanIdentity) -> dict[str, str | None]:
        """Who looks for web pages is shown the one for people."""
        said = service_properties(self._config, identity, self._facts)
        return {**said, "path": "/dashboard"} if service == WEB_SERVICE else {**said}


async def _register_service(zeroconf: AsyncZeroconf, info: ServiceInfo) -> Awaitable[object]:
    """Returns when the name is ours; what is returned, when it has been said often enough."""
    register = cast(_Registering, zeroconf.async_register_service)  # pyright: ignore[reportUnknownMemberType]
    return await register(info, allow_name_change=True)


async def _update_service(zeroconf: AsyncZeroconf, info: ServiceInfo) -> None:
    update = cast(_Registering, zeroconf.async_update_service)  # pyright: ignore[reportUnknownMemberType]
    await (await update(info))


def resolve_host(host: str) -> str:
    """The address that a socket for `host` is bound to, as a text. Blocking."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return str(min(found, key=lambda one: one[0] != socket.AF_INET)[4][0])
