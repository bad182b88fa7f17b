"""Which of this machine's addresses others on the network can reach us by. Pure, but for
`read_adapters` and `local_addresses`.

Never announced: loopback, link-local, and the interfaces of containers, virtual machines and VPNs,
because a client elsewhere that is given one of those waits for a connection that cannot come.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

import ifaddr
import msgspec

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
# More would not fit one packet beside the rest; privacy extensions can make dozens.
MAX_ADDRESSES = 8
_VIRTUAL = re.compile(
    r"(docker|podman|veth|virbr|vnet|vmnet|vboxnet|cni|flannel|cali|cilium|lxc|lxd|incus|kube|ifb"
    r"|tun|tap|wg|tailscale|utun|zt|ppp|ipsec|nebula|awdl|llw|anpi|bridge1\d\d|br-[0-9a-f]{12}$)"
)


class Adapter(msgspec.Struct, frozen=True):
    """A network interface; `index` is what IPv6 sockets know it by."""

    name: str
    index: int
    addresses: tuple[IpAddress, ...]


class Reachable(msgspec.Struct, frozen=True):
    """`addresses` to announce; `interfaces` in the form that zeroconf binds: IPv4 or IPv6 index."""

    addresses: tuple[str, ...] = ()
    interfaces: tuple[str | int, ...] = ()


def read_adapters() -> list[Adapter]:
    """All interfaces that are up. Blocking: it asks the system."""
    return [
        Adapter(adapter.name, adapter.index or 0, tuple(_parse(ip) for ip in adapter.ips))
        for adapter in ifaddr.get_adapters()
    ]


def local_addresses() -> frozenset[str]:
    """Every address of this machine's interfaces now, without scope ids. Blocking."""
    addresses = (ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips)
    return frozenset(ip if isinstance(ip, str) else ip[0].partition("%")[0] for ip in addresses)


def _parse(ip: ifaddr.IP) -> IpAddress:
    return ipaddress.ip_address(ip.ip if isinstance(ip.ip, str) else ip.ip[0])


def plan_addresses(bind_host: str, adapters: Iterable[Adapter]) -> Reachable:
    """What to announce for a socket bound to `bind_host`, an address or a wildcard.

    `::` listens on both families, `0.0.0.0` on IPv4 only, an address only on itself. Announcing more
    makes clients try what is closed. IPv4 comes first: some clients look at the first one only.
    """
    bound = ipaddress.ip_address(bind_host)
    found: list[tuple[IpAddress, str | int]] = []
    for adapter in adapters:
        if _VIRTUAL.match(adapter.name):
            continue
        for address in adapter.addresses:
            if _is_announceable(address) and _is_bound(bound, address):
                is_old = isinstance(address, ipaddress.IPv4Address)
                found.append((address, str(address) if is_old else adapter.index))
    found.sort(key=lambda one: (one[0].version, int(one[0])))
    found = found[:MAX_ADDRESSES]
    return Reachable(
        addresses=tuple(str(address) for address, _ in found),
        interfaces=tuple(dict.fromkeys(interface for _, interface in found)),
    )


def _is_announceable(address: IpAddress) -> bool:
    return not (
        address.is_loopback
        or address.is_link_local
        or address.is_unspecified
        or address.is_multicast
    )


def _is_bound(bound: IpAddress, address: IpAddress) -> bool:
    if bound.is_unspecified:
        return bound.version == 6 or address.version == 4
    return bound == address
