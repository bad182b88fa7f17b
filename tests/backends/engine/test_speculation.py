from __future__ import annotations

import random

import pytest

from backends.engine.speculation import (
    MOST_GUESSES,
    TYPICAL_COSTS,
    Guesser,
    PromptLookup,
    RunCosts,
    plan_guesses,
)


def test_what_followed_last_time_is_guessed():
    lookup = PromptLookup([1, 2, 3, 40, 50, 60, 9, 9, 1, 2, 3])
    assert lookup.ahead(2) == [40, 50]
    lookup.push(40)
    assert lookup.ahead(9) == [50, 60, 9, 9, 1, 2, 3, 40]
    lookup.push(7)
    assert lookup.ahead(2) == []


def test_the_latest_place_counts_and_a_running_match_is_followed():
    lookup = PromptLookup([1, 2, 3, 10, 1, 2, 3, 20, 1, 2, 3])
    assert lookup.ahead(1) == [20]
    lookup.push(10)  # not what was guessed: the place is looked up anew
    assert lookup.ahead(1) == [1]


def test_no_image_is_guessed():
    lookup = PromptLookup([1, 2, 3, 40, -7, -7, -7, 9, 1, 2, 3])
    assert lookup.ahead(9) == [40]
    lookup.push(40)
    assert lookup.ahead(9) == []


def test_short_beginnings_guess_nothing():
    assert PromptLookup([]).ahead(3) == []
    assert PromptLookup([1, 1]).ahead(3) == []


@pytest.mark.parametrize(
    ("known", "rate", "expected"),
    [(0, 1.0, 0), (7, 0.1, 0), (1, 0.5, 1), (7, 0.5, 1), (7, 1.0, 7), (2, 1.0, 2)],
)
def test_guesses_are_as_many_as_pay(known: int, rate: float, expected: int):
    assert plan_guesses(known, rate, RunCosts()) == expected


def test_a_machine_where_runs_cost_by_the_id_guesses_nothing():
    costs = RunCosts()
    for ids in range(1, MOST_GUESSES + 2):
        costs.saw(ids, 0.01 * ids)
    assert costs.of(3) == pytest.approx(3)
    assert plan_guesses(7, 0.9, costs) == 0


def spent(answer: list[int], costs: RunCosts, prompt: list[int]) -> float:
    """Runs over one id that it takes to say `answer` with guesses, checked as an engine does it."""
    guesser, total, done = Guesser(prompt), 0.0, 0
    while done < len(answer):
        guesses = guesser.guesses(costs, len(answer) - done - 1)
        total += TYPICAL_COSTS[len(guesses)]
        hits = 0
        while hits < len(guesses) and guesses[hits] == answer[done + hits]:
            hits += 1
        guesser.saw(answer[done : done + hits + 1], len(guesses), costs)
        done += hits + 1
    return total


def test_repetition_is_fast():
    page = [random.Random(1).randrange(1000) for _ in range(200)]
    assert spent(page, RunCosts(), page) < 0.6 * len(page)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("alphabet", [2, 4, 30])
def test_noise_costs_next_to_nothing(alphabet: int, seed: int):
    """Patterns are found everywhere in so few letters, and what follows them is chance."""
    generator = random.Random(seed)
    noise = [generator.randrange(alphabet) for _ in range(600)]
    assert spent(noise[300:], RunCosts(), noise[:300]) < 1.05 * 300
