"""The keys of a running daemon: changes of the file count at once, uses are written rarely."""

from __future__ import annotations

import datetime
import logging
import pathlib

import pytest

from daemon.lan.access import KeysDamaged, add_key, keys_path, now, read_keys, remove_key
from daemon.lan.key_ring import KeyRing
from tests.daemon.api.rig import until


def last_used(home: pathlib.Path) -> list[bool]:
    return [key.last_used is not None for key in read_keys(home)]


async def test_a_key_counts_from_its_making_to_its_removal(tmp_path: pathlib.Path) -> None:
    ring = KeyRing(tmp_path)
    assert ring.find("hk_" + "a" * 43) is None
    key = await ring.add("laptop", "manage")
    found = ring.find(key)
    assert found is not None and (found.name, found.can_manage) == ("laptop", True)
    for other in ("", key[:-1], key + "A", "x" + key, key.swapcase(), "hk_" + "é" * 43):
        assert ring.find(other) is None
    assert await ring.remove("laptop") == 0
    assert ring.find(key) is None
    await ring.close()


async def test_what_another_process_writes_counts_at_once(tmp_path: pathlib.Path) -> None:
    ring = KeyRing(tmp_path)
    for _ in range(20):
        key = add_key(tmp_path, "laptop", "use")
        assert ring.find(key) is not None
        remove_key(tmp_path, "laptop")
        assert ring.find(key) is None
    key = add_key(tmp_path, "laptop", "use")
    assert ring.find(key) is not None
    keys_path(tmp_path).unlink()
    assert ring.find(key) is None
    await ring.close()


async def test_damage_closes_the_door_and_is_said_once(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    ring = KeyRing(tmp_path)
    key = await ring.add("laptop", "use")
    assert ring.find(key) is not None
    whole = keys_path(tmp_path).read_bytes()
    keys_path(tmp_path).write_bytes(whole[:-9])
    with caplog.at_level(logging.WARNING):
        assert [ring.find(key) for _ in range(3)] == [None] * 3
    (record,) = caplog.records
    assert "keys.json" in record.message
    assert key not in record.message
    with pytest.raises(KeysDamaged):
        await ring.keys()
    keys_path(tmp_path).write_bytes(whole)
    assert ring.find(key) is not None
    await ring.close()


async def test_uses_are_remembered_and_written_together(tmp_path: pathlib.Path) -> None:
    ring = KeyRing(tmp_path, write_seconds=0.1)
    keys = [await ring.add(name, "use") for name in ("a", "b", "c")]
    before = keys_path(tmp_path).read_bytes()
    for key in (keys[0], keys[1], keys[0]):
        assert ring.find(key) is not None
    assert keys_path(tmp_path).read_bytes() == before
    await until(lambda: last_used(tmp_path) == [True, True, False])
    assert ring.find(keys[2]) is not None  # and a second time
    await until(lambda: last_used(tmp_path) == [True, True, True])
    await ring.close()


async def test_closing_writes_what_is_left(tmp_path: pathlib.Path) -> None:
    ring = KeyRing(tmp_path)
    key = await ring.add("a", "use")
    assert ring.find(key) is not None
    assert [key.last_used is not None for key in await ring.keys()] == [True]
    assert last_used(tmp_path) == [False]
    await ring.close()
    assert last_used(tmp_path) == [True]


async def test_a_home_that_cannot_be_written_costs_only_the_times(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    ring = KeyRing(tmp_path)
    key = await ring.add("a", "use")
    (tmp_path / "keys.lock").unlink()
    (tmp_path / "keys.lock").mkdir()
    assert ring.find(key) is not None
    await ring.close()
    assert "could not be written" in caplog.text
    assert key not in caplog.text
    assert ring.find(key) is not None
    (tmp_path / "keys.lock").rmdir()
    await ring.close()


async def test_an_expired_key_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = KeyRing(tmp_path)
    key = await ring.add("guest", "use", 60)
    assert ring.find(key) is not None
    later = now() + datetime.timedelta(seconds=61)
    monkeypatch.setattr("daemon.lan.key_ring.now", lambda: later)
    assert ring.find(key) is None
    await ring.close()
