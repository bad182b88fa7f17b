from __future__ import annotations

import random

import pytest

from backends.worker.embed_queue import MAX_SLICE_IDS, MIN_SLICE_IDS, EmbedQueue


def text(length: int) -> tuple[int, ...]:
    return (1,) * length


def vector(ids: tuple[int, ...]) -> bytes:
    return f"{len(ids)}".encode()


def drain(queue: EmbedQueue, seconds: float = 0.01) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    while queue.has_work():
        part = queue.next_slice()
        found |= dict(queue.done(part, [vector(ids) for ids in part.batch], seconds))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_every_text_is_run_once_and_comes_back_in_its_place(seed: int):
    generator = random.Random(seed)
    queue, lengths = EmbedQueue(), {}
    for n in range(8):
        lengths[f"r{n}"] = [generator.randrange(1, 300) for _ in range(generator.randrange(1, 40))]
        queue.add(f"r{n}", [text(length) for length in lengths[f"r{n}"]])
    expected = {name: [f"{n}".encode() for n in found] for name, found in lengths.items()}
    assert drain(queue) == expected
    assert (queue._waiting, queue._vectors) == ([], {})


def test_requests_share_slices_and_little_is_padding():
    queue = EmbedQueue()
    queue.add("a", [text(n) for n in (10, 200, 11)])
    queue.add("b", [text(n) for n in (9, 190, 12)])
    part = queue.next_slice()
    assert sorted(map(len, part.batch)) == [190, 200]
    assert dict.fromkeys(name for name, _ in part.owners) == {"b": None, "a": None}
    assert part.padded_ids == 400


def test_slices_follow_the_rate():
    queue = EmbedQueue()
    queue.add("a", [text(16) for _ in range(5000)])
    sizes = []
    for seconds in (0.1, 1e-9, 100.0, 0.2):
        part = queue.next_slice()
        sizes.append(part.padded_ids)
        queue.done(part, [b""] * len(part.batch), seconds)
    assert sizes == [MIN_SLICE_IDS, 1024, MAX_SLICE_IDS, MIN_SLICE_IDS]


def test_a_long_text_is_a_slice_of_its_own():
    queue = EmbedQueue()
    queue.add("a", [text(5), text(100_000), text(99_999)])
    assert list(map(len, queue.next_slice().batch)) == [100_000]


def test_the_oldest_request_is_never_passed_over():
    queue = EmbedQueue()
    queue.add("old", [text(1)])
    for n in range(100):
        queue.add(f"r{n}", [text(400)])
    part = queue.next_slice()
    assert ("old", 0) in part.owners


def test_what_was_cancelled_is_thrown_away_even_while_it_runs():
    queue = EmbedQueue()
    queue.add("a", [text(3), text(400)])
    queue.add("b", [text(3)])
    part = queue.next_slice()
    assert queue.cancel("a")
    assert not queue.cancel("a")
    assert queue.done(part, [b"x"] * len(part.batch), 0.1) == []
    assert drain(queue) == {"b": [b"3"]}
