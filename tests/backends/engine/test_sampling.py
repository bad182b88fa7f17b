from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.engine.sampling import (
    Distribution,
    Sampler,
    TopK,
    check_sampling,
    likeliest,
    log_sum_exp,
    plan_kept,
    topk_is_sufficient,
)
from backends.types import EngineError, Sampling

GREEDY = Sampling(temperature=0.0)
PLAIN = Sampling(temperature=1.0, top_k=0, top_p=1.0)


def some_logits(size: int = 200, seed: int = 0, spread: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


def probabilities_by_id(distribution: Distribution) -> dict[int, float]:
    return dict(zip(distribution.ids.tolist(), distribution.probabilities.tolist(), strict=True))


def distribution(sampling: Sampling, logits: np.ndarray, history: tuple[int, ...] = ()):
    return Sampler(sampling, history=history).distribution(logits)


def soft(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits.astype(np.float64) - float(logits.max()))
    return exponentials / exponentials.sum()


# ---- each filter by itself, against its definition ----


def test_without_filters_it_is_the_softmax():
    logits = some_logits()
    found = probabilities_by_id(distribution(PLAIN, logits))
    assert [found[i] for i in range(logits.size)] == pytest.approx(soft(logits).tolist())


def test_greedy_takes_the_lower_id_of_equals():
    logits = np.array([1, 5, 2, 5], np.float32)
    assert Sampler(GREEDY).sample(logits) == 1


def test_top_k_keeps_the_lower_ids_of_equals_at_the_border():
    logits = np.array([1, 3, 2, 2, 2], np.float32)
    kept = distribution(Sampling(temperature=1.0, top_k=3, top_p=1.0), logits)
    assert kept.ids.tolist() == [1, 2, 3]


def test_top_p_keeps_the_fewest_that_reach_it():
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    kept = distribution(Sampling(temperature=1.0, top_k=0, top_p=0.7), logits)
    assert probabilities_by_id(kept) == pytest.approx({0: 2 / 3, 1: 1 / 3}, rel=1e-5)


def test_min_p_is_relative_to_the_likeliest():
    logits = np.log(np.array([0.6, 0.25, 0.1, 0.05], np.float32))
    kept = distribution(Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.3), logits)
    assert kept.ids.tolist() == [0, 1]


def test_filters_see_the_distribution_before_temperature():
    logits = np.log(np.array([0.6, 0.25, 0.1, 0.05], np.float32))
    hot = Sampling(temperature=50.0, top_k=0, top_p=1.0, min_p=0.3)
    kept = distribution(hot, logits)
    assert kept.ids.tolist() == [0, 1]
    assert kept.probabilities.tolist() == pytest.approx([0.5, 0.5], abs=0.01)


def test_typical_drops_what_is_too_likely_as_well():
    # Entropy 1.75 bits: the ids of 2 bits are the most typical, the one of 1 bit comes after them.
    logits = np.log(np.array([0.5, 0.125, 0.125, 0.25], np.float32))
    kept = distribution(Sampling(temperature=1.0, top_k=0, top_p=1.0, typical_p=0.2), logits)
    assert kept.ids.tolist() == [3]


def test_tail_free_cuts_after_the_bend():
    # Shares of the curvature: 0, 1/4, 3/4.
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.05, 0.05], np.float32))
    kept = distribution(Sampling(temperature=1.0, top_k=0, top_p=1.0, tfs_z=0.2), logits)
    assert kept.ids.tolist() == [0]
    kept = distribution(Sampling(temperature=1.0, top_k=0, top_p=1.0, tfs_z=0.5), logits)
    assert kept.ids.tolist() == [0, 1]


# ---- penalties ----


def test_penalties_count_the_last_ids_only():
    logits = np.array([2.0, -2.0, 1.0, 0.5], np.float32)
    sampling = Sampling(
        temperature=1.0, top_k=0, top_p=1.0, repeat_penalty=2.0, frequency_penalty=0.25,
        presence_penalty=0.5, repeat_last_n=3,
    )  # fmt: skip
    found = probabilities_by_id(distribution(sampling, logits, history=(3, 1, 0, 0)))
    expected = soft(np.array([2 / 2 - 0.5 - 0.5, -2 * 2 - 0.25 - 0.5, 1.0, 0.5]))
    assert [found[i] for i in range(4)] == pytest.approx(expected.tolist())


@pytest.mark.parametrize(("last_n", "expected"), [(0, 0), (1, 0), (2, 1), (-1, 1)])
def test_repeat_last_n_zero_is_off_and_minus_one_everything(last_n: int, expected: int):
    sampling = Sampling(temperature=0.0, repeat_penalty=2.0, repeat_last_n=last_n)
    assert Sampler(sampling, history=(0, 2)).sample(np.array([3, 2, -9], np.float32)) == expected


def test_newlines_can_be_exempt():
    sampling = Sampling(temperature=0.0, repeat_penalty=2.0, penalize_newline=False)
    logits = np.array([3, 2], np.float32)
    assert Sampler(sampling, newline_ids=frozenset({0}), history=(0,)).sample(logits) == 0


def test_given_arrays_are_left_as_they_are():
    logits = some_logits()
    before = logits.copy()
    Sampler(Sampling(repeat_penalty=1.5), history=range(50)).sample(logits)
    assert np.array_equal(logits, before)


# ---- drawing ----


def test_drawn_ids_follow_the_distribution():
    """A chi-square test at one in 10,000 with the seed fixed."""
    sampling = Sampling(temperature=0.7, top_k=8, top_p=0.95, seed=5)
    logits = some_logits(spread=1.0)
    sampler, draws = Sampler(sampling), 4000
    expected = probabilities_by_id(sampler.distribution(logits))
    counts = dict.fromkeys(expected, 0)
    for _ in range(draws):
        counts[sampler.sample(logits)] += 1
    statistic = sum((counts[i] - draws * p) ** 2 / (draws * p) for i, p in expected.items())
    assert len(expected) == 8
    assert statistic < 29.9


def test_a_seed_repeats_and_another_does_not():
    logits = some_logits(spread=0.5)

    def drawn(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, top_k=0, seed=seed))
        return [sampler.sample(logits) for _ in range(30)]

    assert drawn(7) == drawn(7)
    assert drawn(7) != drawn(8)
    assert drawn(-1) != drawn(-1)
    assert drawn(None) != drawn(None)


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_steers_towards_its_surprise(version: int):
    logits = some_logits(size=2000, spread=2.0)
    surprise = -np.log2(soft(logits))

    def mean_surprise(tau: float) -> float:
        sampling = Sampling(temperature=1.0, mirostat=version, mirostat_tau=tau, seed=3)
        sampler = Sampler(sampling)
        return float(np.mean([surprise[sampler.sample(logits)] for _ in range(400)]))

    low, high = mean_surprise(2.0), mean_surprise(6.0)
    assert low < high - 1.5


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=math.nan),
        Sampling(top_p=math.inf),
        Sampling(repeat_penalty=0.0),
        Sampling(mirostat=3),
    ],
)
def test_numbers_without_a_meaning_are_refused(sampling: Sampling):
    with pytest.raises(EngineError) as caught:
        check_sampling(sampling)
    assert caught.value.code == "invalid"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_are_an_error_on_both_paths(bad: float):
    logits = some_logits()
    logits[3] = bad
    with pytest.raises(EngineError):
        Sampler(GREEDY).sample(logits)
    top = likeliest(logits, 64)
    with pytest.raises(EngineError):
        Sampler(GREEDY).sample_top(top.ids, top.logits, bad, logits.size)


# ---- the top-k path is the other path ----

penalty_settings = st.fixed_dictionaries(
    {
        "repeat_penalty": st.sampled_from([1.0, 1.0, 1.1, 1.5, 0.9]),
        "presence_penalty": st.sampled_from([0.0, 0.0, 0.5, -0.5]),
        "frequency_penalty": st.sampled_from([0.0, 0.0, 0.3, 2.0]),
        "repeat_last_n": st.sampled_from([0, 3, 64, -1]),
    }
)
filter_settings = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.3, 0.8, 1.0, 2.0]),
        "top_k": st.sampled_from([-1, 0, 1, 5, 12, 16, 40]),
        "top_p": st.sampled_from([0.1, 0.5, 0.9, 0.99, 1.0]),
        "min_p": st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0]),
        "typical_p": st.sampled_from([1.0, 1.0, 1.0, 0.5]),
        "tfs_z": st.sampled_from([1.0, 1.0, 1.0, 0.7]),
        "mirostat": st.sampled_from([0, 0, 0, 0, 2]),
    }
)


def random_logits(kind: str, size: int, seed: int) -> np.ndarray:
    """Flat, peaked, or on a coarse grid so that equal values are common."""
    generator = np.random.default_rng(seed)
    spread = {"flat": 0.3, "peaked": 6.0, "grid": 2.0}[kind]
    logits = generator.standard_normal(size) * spread
    return (np.round(logits) if kind == "grid" else logits).astype(np.float32)


@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from(["flat", "peaked", "grid"]),
    st.sampled_from([10, 16, 17, 80]),
    st.integers(0, 2**31),
    filter_settings,
    penalty_settings,
    st.lists(st.integers(0, 79), max_size=12),
)
def test_top_k_gives_the_same_distribution_or_says_that_it_cannot(
    kind: str, size: int, seed: int, filters: dict, penalties: dict, history: list[int]
):
    logits = random_logits(kind, size, seed)
    history = [token_id % size for token_id in history]
    sampling = Sampling(seed=1, **filters, **penalties)
    top = likeliest(logits, 16)
    lse = np.float32(log_sum_exp(logits))
    whole, listed = (Sampler(sampling, history=history) for _ in range(2))
    found = listed.distribution_top(top.ids, top.logits, float(lse), size)
    if found is None:
        return
    expected = whole.distribution(logits)
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.probabilities.tolist() == expected.probabilities.tolist()
    assert listed.sample_top(top.ids, top.logits, float(lse), size) == whole.sample(logits)


@pytest.mark.parametrize(
    ("sampling", "is_enough"),
    [
        (Sampling(), False),  # its top_k is 40
        (GREEDY, True),
        (Sampling(top_k=16), True),
        (Sampling(top_k=17), False),
        (Sampling(top_k=0, top_p=0.5), True),
        (Sampling(top_k=0, top_p=0.9999), False),
        (Sampling(top_k=0, top_p=1.0, min_p=0.2), True),
        (Sampling(top_k=0, top_p=1.0), False),
        (Sampling(top_k=16, typical_p=0.5), True),
        (Sampling(top_k=0, typical_p=0.5), False),
        (Sampling(top_k=16, mirostat=2), False),
        (Sampling(top_k=8, repeat_penalty=1.1), True),
        (Sampling(top_k=8, repeat_penalty=0.9), False),
    ],
)
def test_what_the_usual_settings_need(sampling: Sampling, is_enough: bool):
    """The predicate must not be so careful that the fast path is never taken."""
    logits = np.linspace(8, -8, 100).astype(np.float32)
    top = likeliest(logits, 16)
    found = Sampler(sampling, history=(2, 99)).sample_top(
        top.ids, top.logits, log_sum_exp(logits), logits.size
    )
    assert (found is not None) is is_enough


def test_the_predicate_and_the_plan_agree():
    logits = some_logits(100)
    top = TopK(likeliest(logits, 16), 16, float(likeliest(logits, 16).logits[-1]), 5.0)
    for sampling in (Sampling(top_k=10), Sampling(top_k=50)):
        assert topk_is_sufficient(sampling, top) is (plan_kept(sampling, top) is not None)
