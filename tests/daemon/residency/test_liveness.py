"""What counts as a sign of life, and for how long none may come; on a clock that tests turn."""

from __future__ import annotations

from backends.types import Status
from daemon.residency.liveness import Liveness, WorkerLimits

LIMITS = WorkerLimits(stuck_seconds=100, fruitless_seconds=1000)


class Turned:
    """A `Liveness` on a clock of its own."""

    def __init__(self) -> None:
        self.now = 50.0
        self.life = Liveness(LIMITS, lambda: self.now)
        self.life.note_status(Status(request_id="w"))

    def after(self, seconds: float) -> str:
        self.now += seconds
        return self.life.check()


def test_silence_is_stalled_first_and_then_ended() -> None:
    turned = Turned()
    assert turned.after(20) == "" and not turned.life.is_stalled
    assert turned.after(1) == "" and turned.life.is_stalled
    assert turned.after(79) == ""
    assert turned.after(1) == "it made no progress for 101 seconds"


def test_an_answer_ends_the_silence() -> None:
    turned = Turned()
    turned.after(90)
    turned.life.note_answer()
    assert not turned.life.is_stalled
    assert turned.after(90) == ""


def test_what_it_says_of_itself_counts_when_it_changes() -> None:
    for status in (Status(request_id="w", steps=1), Status(request_id="w", moved=1)):
        turned = Turned()
        turned.after(90)
        turned.life.note_status(status)
        assert not turned.life.is_stalled
        turned.after(90)
        turned.life.note_status(status)
        assert turned.life.is_stalled
        assert "101" in turned.after(11)


def test_steps_that_bring_nobody_further_are_not_enough_for_ever() -> None:
    turned = Turned()
    for step in range(1, 11):
        assert turned.after(99) == ""
        turned.life.note_status(Status(request_id="w", steps=step))
        assert turned.life.is_stalled == (step > 2)
    assert turned.after(11) == "it made no progress for 1001 seconds, though its engine steps"


def test_a_slow_machine_gets_more_time() -> None:
    turned = Turned()
    assert turned.after(60) == ""
    turned.life.note_answer()
    assert turned.after(1) == ""
    assert turned.after(598) == ""
    assert "601" in turned.after(2)


def test_the_silence_that_lasts_is_no_excuse_for_itself() -> None:
    turned = Turned()
    ends = [bool(turned.after(5)) for _ in range(21)]
    assert ends == [False] * 20 + [True]


def test_time_in_which_nobody_listened_does_not_count() -> None:
    turned = Turned()
    turned.now += 500
    turned.life.forgive(499)
    assert turned.life.check() == "" and not turned.life.is_stalled
