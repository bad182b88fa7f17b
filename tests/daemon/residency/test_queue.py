"""The queue: bounded, fair, visible."""

from __future__ import annotations

import pytest

from daemon.errors import Busy
from daemon.residency.lease import Wish
from daemon.residency.queue import Waiter, WaitQueue
from tests.daemon.residency.shelf import model


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def wish(client: str, name: str = "m") -> Wish:
    return Wish(model=model(name), client=client)


def clients(waiters: list[Waiter]) -> str:
    return " ".join(f"{waiter.wish.client}{waiter.ticket}" for waiter in waiters)


async def test_one_client_is_served_in_the_order_of_arrival():
    queue = WaitQueue(10)
    for _ in range(3):
        queue.join(wish("a"))
    assert clients(queue.in_turn({})) == "a1 a2 a3"


async def test_every_client_has_a_turn_before_any_has_a_second():
    queue = WaitQueue(10)
    for client in "aaabbc":
        queue.join(wish(client))
    assert clients(queue.in_turn({})) == "a1 b4 c6 a2 b5 a3"


async def test_who_is_being_served_waits_for_those_who_are_not():
    queue = WaitQueue(10)
    for client in "ab":
        queue.join(wish(client))
    assert clients(queue.in_turn({"a": 2})) == "b2 a1"


async def test_who_waits_for_long_is_not_passed_any_more():
    queue = WaitQueue(10, clock := Clock())
    for _ in range(2):
        queue.join(wish("a"))
    clock.now += 61
    queue.join(wish("b"))
    assert clients(queue.in_turn({"a": 5})) == "a1 a2 b3"


async def test_it_is_bounded_with_the_text_that_clients_match():
    queue = WaitQueue(1)
    waiter = queue.join(wish("a"))
    with pytest.raises(Busy) as caught:
        queue.join(wish("b"))
    assert caught.value.message == (
        "server busy, please try again.  maximum pending requests exceeded"
    )
    assert caught.value.status == 503
    queue.leave(waiter)
    queue.leave(waiter)
    queue.join(wish("b"))
    assert repr(queue) == "<WaitQueue 1 of 1>"


async def test_it_can_be_looked_at():
    queue = WaitQueue(10, clock := Clock())
    queue.join(wish("a", "one"))
    clock.now += 5
    queue.join(wish("b", "two"))
    first, second = queue.visible({})
    assert (first.name, first.client, first.position, first.age_seconds) == (
        "one:latest",
        "a",
        1,
        5,
    )
    assert (second.position, second.age_seconds, second.waits_for) == (2, 0, "conversion")
