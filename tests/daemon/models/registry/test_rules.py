"""The pure rules of registry traffic: challenges, reach, quiet hours, keys."""

from __future__ import annotations

import datetime
import pathlib
import stat
import time

import pytest

from daemon.errors import Internal
from daemon.models.registry.challenge import Challenge, parse_challenge, token_url
from daemon.models.registry.keys import load_or_create_key
from daemon.models.registry.reach import Reach, is_public
from daemon.models.registry.throttle import QuietHours, Throttle, parse_quiet_hours


def test_a_challenge() -> None:
    header = (
        'Bearer realm="https://r.example/token",service="r.example",scope="repository:a/b:pull x"'
    )
    assert parse_challenge(header, "R.example") == Challenge(
        "https://r.example/token", "r.example", ("repository:a/b:pull", "x")
    )


@pytest.mark.parametrize(
    "header", ["", "Basic x", 'Bearer realm="ftp://r.example/"', 'Bearer service="x"']
)
def test_no_challenge_is_a_refusal(header: str) -> None:
    with pytest.raises(Internal, match="unauthorized: access denied"):
        parse_challenge(header, "r.example")


def test_a_token_is_never_sent_elsewhere() -> None:
    with pytest.raises(Internal) as caught:
        parse_challenge('Bearer realm="https://evil.example/t"', "r.example")
    assert caught.value.message == (
        'realm host "evil.example" does not match original host "r.example"'
    )


def test_the_token_url_is_sorted() -> None:
    challenge = Challenge("https://r/t", "svc", ("b c", "a"))
    url = token_url(challenge, unix_seconds=5, nonce="n")
    assert url == "https://r/t?nonce=n&scope=a&scope=b+c&service=svc&ts=5"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("10.1.2.3", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.251", False),
        ("not an address", False),
    ],
)
def test_public_addresses(address: str, expected: bool) -> None:
    assert is_public(address) is expected


@pytest.mark.parametrize(
    ("host", "entry", "allowed"),
    [
        ("hf.co", "hf.co", True),
        ("HF.co:443", "hf.co", True),
        ("hf.co:444", "hf.co:443", False),
        ("a.hf.co", "*.hf.co", True),
        ("evilhf.co", "*.hf.co", False),
        ("hf.co.evil", "hf.co", False),
    ],
)
def test_the_allow_list(host: str, entry: str, allowed: bool) -> None:
    reach = Reach(allowed_hosts=(entry,))
    if allowed:
        reach.check_registry(host)
    else:
        with pytest.raises(Exception, match="not in the list"):
            reach.check_registry(host)


@pytest.mark.parametrize(
    ("text", "clock", "left"),
    [
        ("08:00-23:30", "08:00", 15.5 * 3600),
        ("08:00-23:30", "23:29", 60),
        ("08:00-23:30", "23:30", 0),
        ("22:00-06:00", "23:00", 7 * 3600),
        ("22:00-06:00", "05:59", 60),
        ("22:00-06:00", "12:00", 0),
    ],
)
def test_quiet_hours(text: str, clock: str, left: float) -> None:
    now = datetime.datetime.combine(datetime.date(2026, 1, 1), datetime.time.fromisoformat(clock))
    assert parse_quiet_hours(text).seconds_left(now) == left


@pytest.mark.parametrize("text", ["", "8-9", "25:00-26:00", "08:61-09:00"])
def test_quiet_hours_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="quiet hours"):
        parse_quiet_hours(text)


async def test_the_cap_holds() -> None:
    throttle = Throttle(1_000_000, QuietHours(0, 0))
    begin = time.monotonic()
    for _ in range(10):
        await throttle.spend(100_000)
    assert 0.6 < time.monotonic() - begin < 3


def test_a_key_is_made_once_and_kept_private(tmp_path: pathlib.Path) -> None:
    first = load_or_create_key(tmp_path)
    assert load_or_create_key(tmp_path).public_line == first.public_line
    assert stat.S_IMODE((tmp_path / "id_ed25519").stat().st_mode) == 0o600
    assert (tmp_path / "id_ed25519.pub").read_text().startswith("ssh-ed25519 ")
    (tmp_path / "id_ed25519").write_text("rubbish")
    with pytest.raises(Internal, match="not a readable private key"):
        load_or_create_key(tmp_path)
