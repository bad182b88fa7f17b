"""Devices that ask and owners that answer, with a clock of the test's own."""

from __future__ import annotations

import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.errors import Busy, Forbidden, Invalid, NotFound
from daemon.lan.access import add_key, read_keys
from daemon.lan.key_ring import KeyRing
from daemon.lan.pairing import LIFETIME_SECONDS, MOST_OF_ONE, MOST_WAITING, Pairing


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pairing(tmp_path: pathlib.Path, clock: Clock) -> Pairing:
    return Pairing(KeyRing(tmp_path), clock)


async def test_an_approved_device_gets_its_key_once(
    pairing: Pairing, tmp_path: pathlib.Path
) -> None:
    asked = pairing.ask("phone", "192.0.2.1")
    assert pairing.claim(asked.ticket).state == "waiting"
    (shown,) = pairing.waiting()
    assert (shown.code, shown.name, shown.address) == (asked.code, "phone", "192.0.2.1")
    assert read_keys(tmp_path) == ()
    code = f"{asked.code[:3]} {asked.code[3:]}"  # as people type it
    assert await pairing.approve(code, "use") == "phone"
    assert pairing.waiting() == []
    claim = pairing.claim(asked.ticket)
    assert (claim.state, claim.name, claim.scope) == ("approved", "phone", "use")
    ring = KeyRing(tmp_path)
    known = ring.find(claim.key)
    assert known is not None and known.name == "phone" and not known.can_manage
    await ring.close()
    with pytest.raises(NotFound):
        pairing.claim(asked.ticket)


async def test_the_owner_may_name_it_and_let_it_manage(
    pairing: Pairing, tmp_path: pathlib.Path
) -> None:
    asked = pairing.ask("phone", "192.0.2.1")
    assert await pairing.approve(asked.code, "manage", "kitchen") == "kitchen"
    (known,) = read_keys(tmp_path)
    assert (known.name, known.scope) == ("kitchen", "manage")


async def test_a_name_that_is_taken_leaves_the_device_waiting(
    pairing: Pairing, tmp_path: pathlib.Path
) -> None:
    add_key(tmp_path, "phone", "use")
    asked = pairing.ask("phone", "192.0.2.1")
    with pytest.raises(Invalid, match="already"):
        await pairing.approve(asked.code, "use")
    assert [one.code for one in pairing.waiting()] == [asked.code]
    assert await pairing.approve(asked.code, "use", "phone-2") == "phone-2"


async def test_a_refused_device_is_told_and_cannot_be_approved(pairing: Pairing) -> None:
    asked = pairing.ask("phone", "192.0.2.1")
    pairing.refuse(asked.code)
    with pytest.raises(Forbidden):
        pairing.claim(asked.ticket)
    with pytest.raises(NotFound):
        await pairing.approve(asked.code, "use")
    with pytest.raises(NotFound):
        pairing.refuse(asked.code)


async def test_what_is_old_is_forgotten(pairing: Pairing, clock: Clock) -> None:
    asked = pairing.ask("phone", "192.0.2.1")
    clock.now += LIFETIME_SECONDS
    assert pairing.waiting() == []
    with pytest.raises(NotFound):
        await pairing.approve(asked.code, "use")
    with pytest.raises(NotFound):
        pairing.claim(asked.ticket)


def test_nobody_fills_the_memory(pairing: Pairing, clock: Clock) -> None:
    for _ in range(MOST_OF_ONE):
        pairing.ask("phone", "192.0.2.1")
    with pytest.raises(Busy):
        pairing.ask("phone", "192.0.2.1")
    for other in range(MOST_WAITING - MOST_OF_ONE):
        pairing.ask("phone", f"198.51.100.{other}")
    with pytest.raises(Busy):
        pairing.ask("phone", "203.0.113.1")
    assert len({one.code for one in pairing.waiting()}) == MOST_WAITING
    clock.now += LIFETIME_SECONDS
    pairing.ask("phone", "203.0.113.1")


@given(st.text(max_size=80))
async def test_only_names_of_keys_are_taken(name: str) -> None:
    pairing = Pairing(KeyRing(pathlib.Path("/nowhere")), Clock())
    try:
        pairing.ask(name, "192.0.2.1")
    except Invalid:
        return
    assert name.isascii() and 1 <= len(name) <= 64 and not set(name) & set(' \n"<>/\\')


@given(st.text(max_size=20))
async def test_no_other_code_or_ticket_opens_anything(text: str) -> None:
    pairing = Pairing(KeyRing(pathlib.Path("/nowhere")), Clock())
    asked = pairing.ask("phone", "192.0.2.1")
    if "".join(text.split()) != asked.code:
        with pytest.raises(NotFound):
            await pairing.approve(text, "use")
    with pytest.raises(NotFound):
        pairing.claim(text)
