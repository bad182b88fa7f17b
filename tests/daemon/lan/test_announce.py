"""The announcement: its facts, and two hosts in network namespaces that see each other."""

from __future__ import annotations

import asyncio
import pathlib
import time
from collections.abc import Iterator

import msgspec
import pytest

from daemon.config import Config
from daemon.lan.addresses import Adapter
from daemon.lan.announce import Announcer, Facts, resolve_host, service_properties
from daemon.lan.identity import load_identity
from tests.daemon.lan.namespaces import TwoHosts, ip, why_impossible

IMPOSSIBLE = why_impossible()
needs_network = [
    pytest.mark.network,
    pytest.mark.skipif(bool(IMPOSSIBLE), reason=IMPOSSIBLE or "never"),
]


def config(home: pathlib.Path, host: str = "0.0.0.0") -> Config:
    return Config(home=home, models=home, artifacts=home, host=host, open_lan=True)


def test_the_record_says_public_facts_in_few_bytes(tmp_path: pathlib.Path):
    identity = load_identity(tmp_path, "")
    said = service_properties(config(tmp_path), identity, Facts(backend="ort-cpu", models=12))
    assert next(iter(said)) == "txtvers"
    assert (said["path"], said["auth"], said["tls"], said["n"]) == ("/", "none", "0", "12")
    assert (said["id"], said["be"]) == (identity.id, "ort-cpu")
    assert all(0 < len(key) <= 9 and key.isascii() for key in said)
    assert sum(len(key) + len(value) + 2 for key, value in said.items()) <= 200
    keyed = msgspec.structs.replace(config(tmp_path), open_lan=False)
    assert service_properties(keyed, identity, Facts())["auth"] == "bearer"
    assert "be" not in service_properties(config(tmp_path), identity, Facts())


def test_names_of_hosts_are_resolved():
    assert resolve_host("0.0.0.0") == "0.0.0.0"
    assert resolve_host("localhost") in ("127.0.0.1", "::1")


async def test_nothing_is_announced_on_loopback(tmp_path: pathlib.Path):
    announcer = Announcer(config(tmp_path, "127.0.0.1"), 1, adapters=_must_not_be_called)
    await announcer.start()
    await asyncio.sleep(0.05)
    await announcer.stop()
    assert repr(announcer) == "<Announcer nobody yet on no address>"
    assert not (tmp_path / "lan.json").exists()


async def test_a_failing_network_is_only_a_warning(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
):
    calls = 0

    def adapters() -> list[Adapter]:
        nonlocal calls
        calls += 1
        raise OSError("no netlink")

    announcer = Announcer(config(tmp_path), 1, poll_seconds=0.05, adapters=adapters)
    await announcer.start()
    await asyncio.sleep(0.3)
    await announcer.stop()
    await announcer.stop()
    assert calls > 1
    assert "not announced on the network: no netlink" in caplog.text


async def test_without_an_address_it_waits_for_one(tmp_path: pathlib.Path):
    announcer = Announcer(config(tmp_path), 1, poll_seconds=0.05, adapters=list)
    await announcer.start()
    await asyncio.sleep(0.2)
    assert announcer.addresses == ()
    await announcer.stop()


def _must_not_be_called() -> list[Adapter]:
    raise AssertionError


# ---- two hosts ----


@pytest.fixture
def hosts() -> Iterator[TwoHosts]:
    made = TwoHosts()
    yield made
    made.close()


class TestTwoHosts:
    pytestmark = needs_network

    def test_it_is_discovered_and_gone_at_once(self, hosts: TwoHosts, tmp_path: pathlib.Path):
        watcher = hosts.run(hosts.b, "watch")
        watcher.heard(change="watching")
        one = hosts.run(hosts.a, "announce", str(tmp_path), "::", "Attic")
        for service in ("_ollama._tcp.local.", "_http._tcp.local."):
            watcher.heard(change="Added", type=service, name=f"Attic.{service}")
        assert one.heard()["name"] == "Attic"
        (peer,) = hosts.run(hosts.b, "discover", "2").heard()["peers"]
        assert (peer["name"], peer["port"]) == ("Attic", 11434)
        assert peer["addresses"] == ["10.77.0.1", "fd77::1"]
        said = peer["properties"]
        assert (said["txtvers"], said["be"], said["n"], said["api"]) == (
            "1",
            "ort-cpu",
            "3",
            "ollama,openai,anthropic",
        )
        started = time.monotonic()
        one.process.terminate()
        for _ in range(2):
            watcher.heard(seconds=3, change="Removed")
        assert time.monotonic() - started < 3
        assert one.end() == 0
        assert hosts.run(hosts.b, "discover", "1").heard()["peers"] == []

    def test_a_taken_name_is_changed_and_remembered(self, hosts: TwoHosts, tmp_path: pathlib.Path):
        homes = [tmp_path / name for name in "ab"]
        first = hosts.run(hosts.a, "announce", str(homes[0]), "0.0.0.0", "Attic")
        assert first.heard()["name"] == "Attic"
        second = hosts.run(hosts.b, "announce", str(homes[1]), "0.0.0.0", "Attic")
        assert second.heard()["name"] == "Attic-2"
        assert [one.end() for one in (first, second)] == [0, 0]
        again = hosts.run(hosts.b, "announce", str(homes[1]), "0.0.0.0", "Attic")
        assert again.heard()["name"] == "Attic-2"

    def test_hostile_texts_are_shown_harmlessly_or_not_at_all(self, hosts: TwoHosts):
        hosts.run(hosts.a, "lie").heard()
        (peer,) = hosts.run(hosts.b, "discover", "2").heard()["peers"]
        assert peer["name"] == "Evil"
        assert peer["addresses"] == ["10.77.0.1"]
        said = peer["properties"]
        assert (said["v"], said["be"], said["xy"]) == ("[2J]0;owned", "b" * 128, "abc")

    def test_a_new_address_is_followed(self, hosts: TwoHosts, tmp_path: pathlib.Path):
        one = hosts.run(hosts.a, "announce", str(tmp_path), "0.0.0.0", "Attic")
        one.heard(addresses=["10.77.0.1"])
        ip("-n", hosts.a, "addr", "del", "10.77.0.1/24", "dev", "lan0")
        ip("-n", hosts.a, "addr", "add", "10.77.0.9/24", "dev", "lan0")
        ip("-n", hosts.a, "route", "replace", "224.0.0.0/4", "dev", "lan0")
        one.heard(addresses=["10.77.0.9"])
        (peer,) = hosts.run(hosts.b, "discover", "2").heard()["peers"]
        assert (peer["name"], peer["addresses"]) == ("Attic", ["10.77.0.9"])
