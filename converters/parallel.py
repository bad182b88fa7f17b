"""Slices of a model one after the other, or in several processes at once: results in order.

Threads would wait for each other's turn at the interpreter: two of them gain a quarter, two
processes work at double speed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeVar

from converters.confinement import Limits, confine, die_with_parent

# A slice is under way in each and one waits for it.
_GIVEN_AHEAD = 2
# macOS's libraries do not survive a fork.
StartMethod = Literal["fork", "spawn"]
_START_METHOD: Final = "spawn" if sys.platform == "darwin" else "fork"

Item = TypeVar("Item")
Result = TypeVar("Result")


class RunInOrder(Protocol):
    def __call__(
        self,
        work: Callable[[Item], Result],
        items: Iterable[Item],
        finish: Callable[[Result], None],
    ) -> None:
        """`finish` with each item's result, here and in the items' order.

        Raises what any of them raises; nothing works on an item any more by then. Where processes
        do it, `work`, items, results and errors are pickled.
        """
        ...


def one_by_one(
    work: Callable[[Item], Result], items: Iterable[Item], finish: Callable[[Result], None]
) -> None:
    """A `RunInOrder` in this process."""
    for item in items:
        finish(work(item))


def worker_count(most: int) -> int:
    """As many as there are processors for this process, at most so many; 0 where they do not pay."""
    if hasattr(os, "sched_getaffinity"):
        found = len(os.sched_getaffinity(0))
    else:
        found = os.cpu_count() or 1
    return min(found, most) if found > 1 else 0


@contextlib.contextmanager
def workers(
    count: int, limits: Limits, method: StartMethod = _START_METHOD
) -> Iterator[RunInOrder]:
    """Processes that confine themselves by `limits` and wait for work; gone afterwards.

    To be called before this process confines itself, and while it has one thread.
    """
    if not count:
        yield one_by_one
        return
    with contextlib.closing(_Workers(count, limits, method)) as started:
        yield started.run


class _Begin(NamedTuple):
    work: Callable[[Any], object]


class _Failed(NamedTuple):
    error: Exception


class _Workers:
    def __init__(self, count: int, limits: Limits, method: StartMethod) -> None:
        if method == "fork":
            context = multiprocessing.get_context("fork")
        else:
            context = multiprocessing.get_context("spawn")
        self._processes: dict[Connection, BaseProcess] = {}
        for _ in range(count):
            ours, theirs = context.Pipe()
            inherited = [*self._processes, ours] if method == "fork" else []
            self._processes[ours] = context.Process(
                target=_serve, args=(theirs, inherited, os.getpid(), limits)
            )
            self._processes[ours].start()
            theirs.close()

    def run(
        self,
        work: Callable[[Item], Result],
        items: Iterable[Item],
        finish: Callable[[Result], None],
    ) -> None:
        """A `RunInOrder`. Raises RuntimeError too, when a process ends in the middle."""
        try:
            self._run(work, items, finish)
        except BaseException:
            self.close()
            raise

    def _run(
        self,
        work: Callable[[Item], Result],
        items: Iterable[Item],
        finish: Callable[[Result], None],
    ) -> None:
        waiting, given = enumerate(items), {link: deque[int]() for link in self._processes}
        results: dict[int, Result] = {}
        finished = 0
        for link in self._processes:
            self._send(link, _Begin(work))
        for link in list(self._processes) * _GIVEN_AHEAD:
            self._give(link, waiting, given)
        while busy := [link for link, indices in given.items() if indices]:
            for link in wait(busy):
                assert isinstance(link, Connection)
                results[given[link].popleft()] = self._receive(link)
                self._give(link, waiting, given)
            while finished in results:
                finish(results.pop(finished))
                finished += 1

    def _give(
        self,
        link: Connection,
        waiting: Iterator[tuple[int, object]],
        given: dict[Connection, deque[int]],
    ) -> None:
        for index, item in waiting:
            self._send(link, item)
            given[link].append(index)
            return

    def _send(self, link: Connection, message: object) -> None:
        try:
            link.send(message)
        except BrokenPipeError:
            raise self._ended(link) from None

    def _receive(self, link: Connection) -> Any:
        try:
            answer = link.recv()
        except (EOFError, ConnectionResetError):
            raise self._ended(link) from None
        if isinstance(answer, _Failed):
            raise answer.error
        return answer

    def _ended(self, link: Connection) -> RuntimeError:
        process = self._processes[link]
        process.join()
        code = process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return RuntimeError(f"a process that wrote weights ended: {how}")

    def close(self) -> None:
        """Waits until none works on a slice any more. Again is allowed."""
        for link in self._processes:
            link.close()
        for process in self._processes.values():
            process.join()
        self._processes = {}


def _serve(
    link: Connection, inherited: Iterable[Connection], parent_pid: int, limits: Limits
) -> None:
    """A worker's life: to the end of the pipe or of its parent."""
    for other in inherited:
        other.close()  # the pipe would not end while a copy of its far end is open here
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    die_with_parent(parent_pid)
    confine(**limits)
    work: Callable[[Any], object] | None = None
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            message = link.recv()
            if isinstance(message, _Begin):
                work = message.work
            elif work:
                link.send(_result(work, message))


def _result(work: Callable[[Any], object], item: object) -> object:
    try:
        return work(item)
    except Exception as error:  # noqa: BLE001 raised again where the result is awaited
        return _Failed(error)
