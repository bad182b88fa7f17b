"""Which hosts registry traffic may reach: the owner's allow-list, and no private address by surprise.

A registry that is itself public may send us to another public host for a blob (that is how the
large ones work), never to this machine or its network: such a redirect is how a stranger's registry
would reach a router or a cloud's metadata service. Names are checked after resolving, at the moment
of connecting, so a name that changes its mind gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket

import aiohttp
import aiohttp.abc
import msgspec

from daemon.errors import Forbidden


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """`allowed_hosts` empty: every host. Entries are host or host:port, `*.` matches below."""

    allowed_hosts: tuple[str, ...] = ()

    def check_registry(self, host: str) -> None:
        """Raises Forbidden for a registry that the owner did not list."""
        if self.allowed_hosts and not any(_matches(host, entry) for entry in self.allowed_hosts):
            raise Forbidden(f"registry host {host} is not in the list of allowed registries")


def _matches(host: str, entry: str) -> bool:
    host, entry = host.lower(), entry.lower()
    bare = host.rsplit(":", 1)[0] if host.count(":") == 1 else host
    if entry.startswith("*."):
        return bare.endswith(entry[1:])
    return entry in (host, bare)


def is_public(address: str) -> bool:
    """Whether an address is one of the internet's. IPv4 inside IPv6 counts as what it is."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return ip.is_global and not ip.is_multicast


class PublicOnlyResolver(aiohttp.abc.AbstractResolver):
    """Resolves as usual and drops what is not public. Raises OSError when nothing is left."""

    def __init__(self) -> None:
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[aiohttp.abc.ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        kept = [entry for entry in found if is_public(entry["host"])]
        if not kept:
            raise OSError(f"{host} leads to a private address, which a redirect may not")
        return kept

    async def close(self) -> None:
        await self._inner.close()


def is_private_literal(host: str) -> bool:
    """Whether `host` is an address written out, and not one of the internet's."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return not is_public(host)


def check_redirect_literal(host: str) -> None:
    """Addresses written out never pass a resolver. Raises Forbidden for private ones."""
    if is_private_literal(host):
        raise Forbidden(f"the registry redirects to the private address {host}")
