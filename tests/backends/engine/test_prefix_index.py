from __future__ import annotations

import random

import pytest

from backends.engine.prefix_index import BLOCK, Match, Prefix, PrefixIndex, common_length


def index_of(**sequences: list[int]) -> PrefixIndex[str]:
    index: PrefixIndex[str] = PrefixIndex()
    for key, ids in sequences.items():
        index.put(key, Prefix(ids))
    return index


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (list(range(100)), Match("long", 100)),
        (list(range(300)), Match("long", 200)),
        ([*range(70), 7, 7], Match("long", 70)),
        ([*range(BLOCK), -1], Match("long", BLOCK)),
        ([500, 501, 502, 503], Match("short", 3)),
    ],
)
def test_the_longest_shared_prefix_wins(wanted: list[int], expected: Match[str]):
    index = index_of(long=list(range(200)), short=[500, 501, 502])
    assert index.matches(Prefix(wanted))[0] == expected


def test_nothing_in_common_is_no_match():
    assert index_of(a=[1, 2, 3]).matches(Prefix([2, 1])) == []
    assert index_of().matches(Prefix([2, 1])) == []


def test_scopes_see_nothing_of_each_other_but_a_whole_system_prefix():
    index: PrefixIndex[str] = PrefixIndex()
    secret = [*range(50), 99, 98, 97]
    index.put("a", Prefix(secret, "key a", 50))
    assert index.matches(Prefix(secret, "key b")) == []
    assert index.matches(Prefix(secret, "key b", 49)) == []
    assert index.matches(Prefix(secret, "key b", 51)) == []
    assert index.matches(Prefix(secret, "key b", 50)) == [Match("a", 50)]
    assert index.matches(Prefix(secret, "key a", 50)) == [Match("a", 53)]


def test_putting_again_replaces_and_removing_leaves_nothing():
    index = index_of(a=list(range(100)))
    index.put("a", Prefix([7, 8, 9], "", 2))
    assert index.matches(Prefix(list(range(100)))) == []
    assert index.matches(Prefix([7, 8, 9])) == [Match("a", 3)]
    index.remove("a")
    index.remove("a")
    assert (len(index), index._roots, index._by_system) == (0, {}, {})


@pytest.mark.parametrize("seed", range(5))
def test_as_a_search_through_all(seed: int):
    """Random sequences of few ids, put and removed: the best match is the one that comparing finds."""
    generator = random.Random(seed)
    index: PrefixIndex[int] = PrefixIndex()
    known: dict[int, list[int]] = {}
    stems = [[generator.randrange(3) for _ in range(90)] for _ in range(3)]
    for step in range(300):
        stem = generator.choice(stems)
        ids = stem[: generator.randrange(91)]
        ids = ids + [generator.randrange(3) for _ in range(generator.randrange(40))]
        if generator.random() < 0.3 and known:
            gone = generator.choice(list(known))
            index.remove(gone)
            del known[gone]
        else:
            index.put(step, Prefix(ids))
            known[step] = ids
        wanted = generator.choice(stems)[:80] + [generator.randrange(3) for _ in range(20)]
        best = max((common_length(ids, wanted) for ids in known.values()), default=0)
        found = index.matches(Prefix(wanted))
        assert (found[0].shared if found else 0) == best
        for match in found:
            assert match.shared == common_length(known[match.key], wanted)
    for key in list(known):
        index.remove(key)
    assert index._roots == {}


def test_whole_shorter_ones_are_found_beside_one_that_shares_more():
    ids = list(range(300))
    index = index_of(long=[*ids, 7], system=ids[:70], first=ids[:20], other=[*ids[:64], 9])
    found = [Match("long", 250), Match("system", 70), Match("first", 20)]
    assert index.matches(Prefix(ids[:250])) == found
    index.remove("system")
    assert index.matches(Prefix(ids[:250])) == [found[0], found[2]]
