"""Two slices at once: NumPy and the system calls let go of the interpreter while they work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

WORKERS = 2

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_in_order(
    work: Callable[[Item], Result], items: Iterable[Item], finish: Callable[[Result], None]
) -> None:
    """`work` in threads, `finish` in this one and in the items' order; few items are in memory.

    Raises what any of them raises, after the threads have ended: nothing writes afterwards.
    """
    ahead: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(WORKERS)
    try:
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > WORKERS:
                finish(ahead.popleft().result())
        while ahead:
            finish(ahead.popleft().result())
    finally:
        pool.shutdown(cancel_futures=True)
