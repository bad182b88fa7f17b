"""The file of keys: what it holds, how it is damaged, who writes it at the same time."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from typing import Any

import pytest

from daemon.errors import Invalid, NotFound
from daemon.lan.access import (
    MAX_FILE_BYTES,
    MAX_KEYS,
    KeysDamaged,
    add_key,
    digest_of,
    has_key_form,
    keys_path,
    now,
    read_keys,
    record_uses,
    remove_key,
)

ROOT = pathlib.Path(__file__).parents[3]
ENTRY = {
    "name": "laptop",
    "digest": "a" * 64,
    "scope": "use",
    "created": "2026-01-02T03:04:05Z",
    "last_used": None,
}


def write(home: pathlib.Path, *keys: dict[str, Any], version: object = 1) -> None:
    keys_path(home).write_text(json.dumps({"version": version, "keys": keys}))
    keys_path(home).chmod(0o600)


def test_only_the_digest_is_kept(tmp_path: pathlib.Path) -> None:
    home = tmp_path / "new" / "home"
    key = add_key(home, "laptop", "use")
    assert re.fullmatch(r"hk_[A-Za-z0-9_-]{43}", key) and has_key_form(key)
    stored = keys_path(home).read_text()
    assert key not in stored and key[3:] not in stored
    assert hashlib.sha256(key.encode()).hexdigest() in stored
    assert keys_path(home).stat().st_mode & 0o777 == 0o600
    (known,) = read_keys(home)
    assert (known.name, known.scope, known.last_used) == ("laptop", "use", None)
    assert known.digest == digest_of(key) and not known.can_manage
    assert {path.name for path in home.iterdir()} == {"keys.json", "keys.lock"}


def test_no_two_keys_are_alike(tmp_path: pathlib.Path) -> None:
    keys = [add_key(tmp_path, f"k{number}", "manage") for number in range(20)]
    assert len(set(keys)) == 20
    assert [key.name for key in read_keys(tmp_path)] == [f"k{number}" for number in range(20)]
    assert all(key.can_manage for key in read_keys(tmp_path))


def test_without_a_file_there_are_no_keys(tmp_path: pathlib.Path) -> None:
    assert read_keys(tmp_path / "nowhere") == ()
    with pytest.raises(NotFound, match="'laptop'"):
        remove_key(tmp_path, "laptop")
    assert not keys_path(tmp_path).exists()


@pytest.mark.parametrize("name", ["", " a", "a b", "-a", ".a", "a/b", "ä", "a\n", "a" * 65, "\x1b"])
def test_names_are_plain(tmp_path: pathlib.Path, name: str) -> None:
    with pytest.raises(Invalid, match="name"):
        add_key(tmp_path, name, "use")
    assert read_keys(tmp_path) == ()


def test_a_name_is_given_once(tmp_path: pathlib.Path) -> None:
    first = add_key(tmp_path, "laptop", "use")
    with pytest.raises(Invalid, match="already"):
        add_key(tmp_path, "laptop", "manage")
    assert remove_key(tmp_path, "laptop") == 0
    assert read_keys(tmp_path) == ()
    assert add_key(tmp_path, "laptop", "use") != first


def test_the_number_of_keys_is_bounded(tmp_path: pathlib.Path) -> None:
    full = [ENTRY | {"name": f"n{i}", "digest": f"{i:064x}"} for i in range(MAX_KEYS)]
    write(tmp_path, *full)
    assert keys_path(tmp_path).stat().st_size < MAX_FILE_BYTES // 2
    with pytest.raises(Invalid, match=str(MAX_KEYS)):
        add_key(tmp_path, "more", "use")
    write(tmp_path, *full, ENTRY)
    with pytest.raises(KeysDamaged, match="more than"):
        read_keys(tmp_path)


DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "cut": b'{"version":1,"keys":[{"name":"lap',
    "not an object": b"[]",
    "no keys": b'{"version":1}',
    "zeros": bytes(300),
    "large": b" " * MAX_FILE_BYTES + b'{"version":1,"keys":[]}',
}
DAMAGED |= {
    why: json.dumps({"version": 1, "keys": keys}).encode()
    for why, keys in {
        "a digest that is none": [ENTRY | {"digest": "a" * 63}],
        "a name that is none": [ENTRY | {"name": "../x"}],
        "an unknown scope": [ENTRY | {"scope": "all"}],
        "an unknown field": [ENTRY | {"expires": "tomorrow"}],
        "a time without a zone": [ENTRY | {"created": "2026-01-02T03:04:05"}],
        "one name twice": [ENTRY, ENTRY | {"digest": "b" * 64}],
        "one digest twice": [ENTRY, ENTRY | {"name": "other"}],
    }.items()
}
DAMAGED["a newer version"] = b'{"version":2,"keys":[]}'


@pytest.mark.parametrize("why", DAMAGED)
def test_a_damaged_file_is_refused_and_left_alone(tmp_path: pathlib.Path, why: str) -> None:
    keys_path(tmp_path).write_bytes(DAMAGED[why])
    keys_path(tmp_path).chmod(0o600)
    with pytest.raises(KeysDamaged, match=r"keys\.json"):
        read_keys(tmp_path)
    with pytest.raises(KeysDamaged):
        add_key(tmp_path, "x", "use")
    with pytest.raises(KeysDamaged):
        remove_key(tmp_path, "laptop")
    with pytest.raises(KeysDamaged):
        record_uses(tmp_path, {"a" * 64: now()})
    assert keys_path(tmp_path).read_bytes() == DAMAGED[why]


def test_the_undamaged_entry_is_read(tmp_path: pathlib.Path) -> None:
    """What the damaged ones differ from."""
    write(tmp_path, ENTRY)
    assert [key.name for key in read_keys(tmp_path)] == ["laptop"]


def test_a_file_that_others_can_write_is_not_trusted(tmp_path: pathlib.Path) -> None:
    add_key(tmp_path, "laptop", "use")
    for mode in (0o620, 0o602):
        keys_path(tmp_path).chmod(mode)
        with pytest.raises(KeysDamaged, match="others"):
            read_keys(tmp_path)
    keys_path(tmp_path).chmod(0o644)
    assert len(read_keys(tmp_path)) == 1


def test_what_is_no_file_is_refused_at_once(tmp_path: pathlib.Path) -> None:
    os.mkfifo(keys_path(tmp_path), 0o600)
    with pytest.raises(KeysDamaged, match="not a file"):
        read_keys(tmp_path)
    keys_path(tmp_path).unlink()
    keys_path(tmp_path).mkdir()
    with pytest.raises(KeysDamaged):
        read_keys(tmp_path)


def test_uses_are_recorded_by_digest_and_never_go_back(tmp_path: pathlib.Path) -> None:
    first, second = (digest_of(add_key(tmp_path, name, "use")) for name in ("a", "b"))
    moment = now()
    record_uses(tmp_path, {first: moment, "c" * 64: moment})
    assert [key.last_used for key in read_keys(tmp_path)] == [moment, None]
    record_uses(tmp_path, {first: moment.replace(year=2020)})
    assert read_keys(tmp_path)[0].last_used == moment
    remove_key(tmp_path, "b")
    record_uses(tmp_path, {second: moment})
    assert [key.name for key in read_keys(tmp_path)] == ["a"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write for another user")
def test_what_root_writes_belongs_to_the_owner_of_the_home(tmp_path: pathlib.Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    add_key(tmp_path, "laptop", "use")
    for path in tmp_path.iterdir():
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12345)


WRITER = """
import pathlib, sys
from daemon.lan.access import add_key, digest_of, now, record_uses, remove_key
home, name = pathlib.Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
for number in range(int(sys.argv[3])):
    digest = digest_of(add_key(home, f"{name}-{number}", "use"))
    record_uses(home, {digest: now()})
    if number % 3 == 0:
        remove_key(home, f"{name}-{number}")
"""


def start_writer(home: pathlib.Path, name: str, count: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(home), name, str(count)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdout.close()
    return process


def test_two_writers_lose_nothing_of_each_other(tmp_path: pathlib.Path) -> None:
    writers = [start_writer(tmp_path, name, 24) for name in ("a", "b")]
    while any(writer.poll() is None for writer in writers):
        read_keys(tmp_path)  # a reader between them never sees half a file
    assert [writer.returncode for writer in writers] == [0, 0]
    keys = {key.name: key for key in read_keys(tmp_path)}
    assert keys.keys() == {f"{w}-{n}" for w in "ab" for n in range(24) if n % 3}
    assert all(key.last_used for key in keys.values())


def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path: pathlib.Path) -> None:
    for round_number in range(6):
        writer = start_writer(tmp_path, f"r{round_number}", 200)
        while not any(key.name.startswith(f"r{round_number}-1") for key in read_keys(tmp_path)):
            assert writer.poll() is None
        time.sleep(0.003 * round_number)
        writer.kill()
        writer.wait()
        known = len(read_keys(tmp_path))
        add_key(tmp_path, f"after-{round_number}", "use")  # nor does its lock stay
        assert len(read_keys(tmp_path)) == known + 1
        for key in read_keys(tmp_path):
            remove_key(tmp_path, key.name)


def test_a_key_with_a_lifetime_ends(tmp_path: pathlib.Path) -> None:
    add_key(tmp_path, "guest", "use", 3600)
    add_key(tmp_path, "own", "use")
    guest, own = read_keys(tmp_path)
    assert guest.expires is not None and own.expires is None
    assert not guest.has_expired(guest.expires - datetime.timedelta(seconds=1))
    assert guest.has_expired(guest.expires)
    assert not own.has_expired(guest.expires)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e12])
def test_no_lifetime_is_absurd(tmp_path: pathlib.Path, seconds: float) -> None:
    with pytest.raises(Invalid, match="a key lives"):
        add_key(tmp_path, "guest", "use", seconds)
    assert read_keys(tmp_path) == ()
