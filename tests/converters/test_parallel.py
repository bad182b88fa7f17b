"""Work in threads, results in order, nothing left running."""

import threading
import time

import pytest

from converters.parallel import WORKERS, run_in_order


def test_results_come_in_the_items_order() -> None:
    seen: list[int] = []

    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3 == 0))
        return item * item

    run_in_order(work, range(20), seen.append)
    assert seen == [item * item for item in range(20)]


def test_few_items_are_taken_ahead() -> None:
    taken: list[int] = []
    farthest: list[int] = []

    def items():
        for item in range(12):
            taken.append(item)
            yield item

    run_in_order(lambda item: item, items(), lambda item: farthest.append(len(taken) - item))
    assert max(farthest) <= WORKERS + 1


@pytest.mark.parametrize("place", ["work", "finish"])
def test_an_error_passes_once_no_thread_works_any_more(place: str) -> None:
    working = 0
    lock = threading.Lock()

    def work(item: int) -> int:
        nonlocal working
        with lock:
            working += 1
        time.sleep(0.005)
        with lock:
            working -= 1
        if place == "work" and item == 3:
            raise OSError("the disk filled up")
        return item

    def finish(item: int) -> None:
        if place == "finish" and item == 3:
            raise OSError("the disk filled up")

    with pytest.raises(OSError, match="filled"):
        run_in_order(work, range(50), finish)
    assert working == 0
