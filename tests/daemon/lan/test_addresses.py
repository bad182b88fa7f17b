"""Which addresses are announced, as a table."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from daemon.lan.addresses import MAX_ADDRESSES, Adapter, plan_addresses, read_adapters


def adapter(name: str, *addresses: str, index: int = 2) -> Adapter:
    return Adapter(name, index, tuple(map(ip_address, addresses)))


LAN = adapter("eth0", "192.0.2.2", "fe80::1", "fd00::2")
LOOPBACK = adapter("lo", "127.0.0.1", "::1", index=1)


@pytest.mark.parametrize(
    ("host", "addresses", "interfaces"),
    [
        ("0.0.0.0", ("192.0.2.2",), ("192.0.2.2",)),
        ("::", ("192.0.2.2", "fd00::2"), ("192.0.2.2", 2)),
        ("192.0.2.2", ("192.0.2.2",), ("192.0.2.2",)),
        ("fd00::2", ("fd00::2",), (2,)),
        ("192.0.2.9", (), ()),
        ("127.0.0.1", (), ()),
        ("::1", (), ()),
    ],
)
def test_announced_is_what_the_socket_listens_on(
    host: str, addresses: tuple[str, ...], interfaces: tuple[str | int, ...]
):
    reachable = plan_addresses(host, [LOOPBACK, LAN])
    assert (reachable.addresses, reachable.interfaces) == (addresses, interfaces)


@pytest.mark.parametrize(
    "name",
    [
        "docker0",
        "br-0123456789ab",
        "veth12ab",
        "virbr0",
        "vmnet8",
        "cni0",
        "flannel.1",
        "cali1",
        "lxcbr0",
        "tun0",
        "tap0",
        "wg0",
        "tailscale0",
        "utun3",
        "zt7",
        "ppp0",
        "awdl0",
        "bridge100",
        "podman0",
    ],
)
def test_containers_machines_and_tunnels_are_not_announced(name: str):
    assert plan_addresses("0.0.0.0", [adapter(name, "10.1.2.3")]).addresses == ()


@pytest.mark.parametrize(
    "name",
    ["eth0", "en0", "wlan0", "wlp3s0", "enp1s0", "br0", "br-lan", "bond0", "bridge0", "eno1"],
)
def test_real_interfaces_are(name: str):
    assert plan_addresses("0.0.0.0", [adapter(name, "10.1.2.3")]).addresses == ("10.1.2.3",)


def test_link_local_addresses_are_not_announced():
    assert plan_addresses("::", [adapter("eth0", "169.254.3.4", "fe80::7")]).addresses == ()


def test_dozens_of_addresses_are_bounded():
    many = adapter("eth0", *(f"fd00::{number:x}" for number in range(1, 40)), "10.0.0.1")
    reachable = plan_addresses("::", [many])
    assert len(reachable.addresses) == MAX_ADDRESSES and reachable.addresses[0] == "10.0.0.1"
    assert reachable.interfaces == ("10.0.0.1", 2)


def test_this_machine_has_a_loopback_which_is_not_announced():
    adapters = read_adapters()
    assert any(ip_address("127.0.0.1") in one.addresses for one in adapters)
    assert "127.0.0.1" not in plan_addresses("0.0.0.0", adapters).addresses
