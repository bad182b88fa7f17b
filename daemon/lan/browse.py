"""Who else announces itself on this network.

Everything received is hostile display text: bounded, without control characters, and never a reason
to trust, route to or believe anybody.
"""

from __future__ import annotations

import asyncio
import ipaddress
import unicodedata
from collections.abc import Iterable

import msgspec
from zeroconf import BadTypeInNameException, IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from daemon.errors import Internal
from daemon.lan.addresses import plan_addresses, read_adapters

SERVICE = "_ollama._tcp.local."
MAX_PEERS = 256
MAX_NAME_CHARACTERS = 63
MAX_PROPERTIES = 24
MAX_KEY_CHARACTERS = 32
MAX_VALUE_CHARACTERS = 128
MAX_ADDRESSES = 8
# For the answers about what was seen at the very end.
_RESOLVE_SECONDS = 1.0


class Peer(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """What somebody says of themselves. `addresses` are real addresses, best family first."""

    name: str
    addresses: tuple[str, ...]
    port: int
    properties: dict[str, str] = {}


def display_text(text: str, limit: int) -> str:
    """Without what could move a terminal's cursor or turn its text around; at most `limit` long."""
    return "".join(filter(_is_harmless, text[: 2 * limit]))[:limit].strip()


def _is_harmless(character: str) -> bool:
    """No control, format, surrogate or unassigned character, no separator but the plain space."""
    return character == " " or unicodedata.category(character)[0] not in "CZ"


def display_properties(properties: dict[bytes, bytes | None]) -> dict[str, str]:
    """A TXT record as text. The first of keys that differ in case only wins, as the RFC has it."""
    shown: dict[str, str] = {}
    for key, value in list(properties.items())[:MAX_PROPERTIES]:
        name = display_text(key.decode("ascii", "replace"), MAX_KEY_CHARACTERS).lower()
        if name and name not in shown:
            text = (value or b"").decode("utf-8", "replace")
            shown[name] = display_text(text, MAX_VALUE_CHARACTERS)
    return shown


def display_addresses(addresses: Iterable[str]) -> tuple[str, ...]:
    """Real unicast addresses of another machine, IPv4 first."""
    found: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = []
    for text in addresses:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            continue
        if not (address.is_loopback or address.is_multicast or address.is_unspecified):
            found.append(address)
    found.sort(key=lambda address: (address.version, int(address)))
    return tuple(str(address) for address in found[:MAX_ADDRESSES])


async def discover(timeout_seconds: float) -> list[Peer]:
    """Everybody who answers within `timeout_seconds`, sorted by name. Raises Internal."""
    reachable = plan_addresses("::", await asyncio.to_thread(read_adapters))
    if not reachable.interfaces:
        raise Internal("this machine has no network to search")
    try:
        zeroconf = AsyncZeroconf(interfaces=list(reachable.interfaces))
    except OSError as error:
        raise Internal(f"this machine's network cannot be searched: {error.strerror}") from error
    try:
        names = await _browse(zeroconf, timeout_seconds)
        peers = await asyncio.gather(*(_resolve(zeroconf.zeroconf, name) for name in names))
    finally:
        await zeroconf.async_close()
    return sorted(peer for peer in peers if peer is not None)


async def _browse(zeroconf: AsyncZeroconf, seconds: float) -> list[str]:
    """Instance names that came and did not go again, at most MAX_PEERS."""
    names: dict[str, None] = {}

    def changed(
        zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        if state_change is ServiceStateChange.Removed:
            names.pop(name, None)
        elif len(names) < MAX_PEERS:
            names[name] = None

    browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE, handlers=[changed])
    try:
        await asyncio.sleep(seconds)
    finally:
        await browser.async_cancel()
    return list(names)


async def _resolve(zeroconf: Zeroconf, name: str) -> Peer | None:
    """None for an impossible name, and for one without an address or a port behind it."""
    try:
        info = AsyncServiceInfo(SERVICE, name)
    except BadTypeInNameException:
        return None  # control characters: nobody means well with those
    if not info.load_from_cache(zeroconf):
        await info.async_request(zeroconf, _RESOLVE_SECONDS * 1000)
    addresses = display_addresses(info.parsed_addresses(IPVersion.All))
    if not addresses or not info.port:
        return None
    return Peer(
        name=display_text(name.removesuffix(f".{SERVICE}"), MAX_NAME_CHARACTERS),
        addresses=addresses,
        port=info.port,
        properties=display_properties(info.properties),
    )
