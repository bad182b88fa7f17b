"""Pulls with neighbours that have the blobs, have none, break off, stall, lie, or want a key."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import AsyncIterator

import pytest

from daemon.errors import Internal
from daemon.lan.browse import Peer
from daemon.models.name import parse_name
from daemon.models.registry.mirror_address import Mirror, parse_mirror
from daemon.models.registry.mirrors import Mirrors, sharing
from tests.daemon.models.registry.pulling import CONFIG, PullingShelf, texts
from tests.daemon.models.shelf import gguf
from tests.registry.server import Registry

MODEL = gguf(note="x" * 400_000)
DIGEST = f"sha256:{hashlib.sha256(MODEL).hexdigest()}"


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    async with Registry() as registry:
        registry.add_model("library/m", "latest", [("model", MODEL)], CONFIG)
        yield registry


@pytest.fixture
async def mirror() -> AsyncIterator[Registry]:
    """Has the weights and knows no model."""
    async with Registry() as mirror:
        mirror.add_blob(MODEL)
        yield mirror


async def pulled(folder: pathlib.Path, registry: Registry, *mirrors: str) -> PullingShelf:
    shelf = PullingShelf(folder / "shelf", mirrors=mirrors)
    try:
        lines = await shelf.pull(registry)
    finally:
        await shelf.puller.close()
        await shelf.conversions.close()
    assert texts(lines)[-1] == "success"
    assert shelf.leftovers() == []
    stored = shelf.store.resolve(parse_name(f"{registry.host}/library/m"))
    assert stored.weights is not None and stored.weights.path.read_bytes() == MODEL
    return shelf


def sent(registry: Registry) -> int:
    return sum(registry.sent_bytes.values())


async def test_what_a_mirror_has_comes_from_there(
    tmp_path: pathlib.Path, registry: Registry, mirror: Registry
) -> None:
    await pulled(tmp_path, registry, mirror.host)
    assert sent(mirror) == len(MODEL)
    assert DIGEST not in "".join(path for _, path in registry.requests)
    assert sent(registry) < 1000  # the config


async def test_one_that_has_nothing_or_is_not_there_costs_nothing(
    tmp_path: pathlib.Path, registry: Registry, mirror: Registry
) -> None:
    mirror.hides_blobs = True
    await pulled(tmp_path, registry, "127.0.0.1:1", mirror.host)
    assert sent(mirror) == 0


async def test_one_that_breaks_off_or_stalls_is_left_out(
    tmp_path: pathlib.Path, registry: Registry, mirror: Registry
) -> None:
    for folder, fault in (("drops", "drop"), ("stalls", "stall")):
        setattr(mirror.faults, f"{fault}_after_bytes", 100_000)
        setattr(mirror.faults, f"{fault}s", 99)
        (tmp_path / folder).mkdir()
        registry.sent_bytes.clear()
        await pulled(tmp_path / folder, registry, mirror.host)
        # What came before the fault is not fetched again.
        assert 0 < sent(registry) < len(MODEL) - 50_000


async def test_a_lie_is_found_out_and_told_once(
    tmp_path: pathlib.Path, registry: Registry, mirror: Registry
) -> None:
    mirror.faults.flips_byte_at = 200_000
    shelf = await pulled(tmp_path, registry, mirror.host)
    assert sent(registry) >= len(MODEL)
    assert await shelf.puller.access.mirrors.all() == []


async def test_a_registry_that_lies_too_is_an_error(
    tmp_path: pathlib.Path, registry: Registry, mirror: Registry
) -> None:
    mirror.faults.flips_byte_at = registry.faults.flips_byte_at = 200_000
    with pytest.raises(Internal, match="digest mismatch"):
        await pulled(tmp_path, registry, mirror.host)


async def test_only_the_mirror_is_shown_its_key(
    tmp_path: pathlib.Path, registry: Registry, mirror: Registry
) -> None:
    key = "hk_" + "k" * 43
    await pulled(tmp_path, registry, f"http://:{key}@{mirror.host}")
    assert f"Bearer {key}" in mirror.authorizations
    assert registry.authorizations == {""}


@pytest.mark.parametrize(
    ("text", "mirror"),
    [
        ("box:11434", Mirror("http://box:11434")),
        ("http://box.local:11434/", Mirror("http://box.local:11434")),
        ("https://:a%2Fb@[fd00::1]:1", Mirror("https://[fd00::1]:1", "a/b")),
    ],
)
def test_how_mirrors_are_written(text: str, mirror: Mirror) -> None:
    assert parse_mirror(text) == mirror


@pytest.mark.parametrize("text", ["", "ftp://box", "http://", "http://box/path", "http://box:x"])
def test_what_is_no_mirror(text: str) -> None:
    with pytest.raises(ValueError):
        parse_mirror(text)


def peer(name: str, **properties: str) -> Peer:
    return Peer(name=name, addresses=("192.0.2.1",), port=11434, properties=properties)


def test_of_the_network_only_those_who_share_with_everybody() -> None:
    found = sharing(
        [
            peer("a", share="1", auth="none"),
            peer("b", share="1", auth="bearer"),
            peer("c", auth="none"),
        ]
    )
    assert found == (Mirror("http://192.0.2.1:11434"),)


async def test_the_network_is_looked_at_once_for_many_blobs() -> None:
    looks: list[float] = []

    async def browse(seconds: float) -> list[Peer]:
        looks.append(seconds)
        return [peer("a", share="1", auth="none")]

    mirrors = Mirrors(("box:1", "lan"), browse)
    for _ in range(3):
        assert [one.host for one in await mirrors.all()] == ["box:1", "192.0.2.1:11434"]
    assert len(looks) == 1
