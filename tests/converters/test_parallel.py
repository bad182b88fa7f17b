"""Work in processes, results in order, nothing left running."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pathlib
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from converters.confinement import Limits
from converters.errors import MalformedFile
from converters.parallel import RunInOrder, one_by_one, worker_count, workers

ROOT = pathlib.Path(__file__).resolve().parents[2]
COUNT = 2


@contextlib.contextmanager
def started(folder: pathlib.Path) -> Iterator[RunInOrder]:
    """Spawned, not forked: pytest's own process may have threads."""
    limits = Limits(
        read=[ROOT], write=[folder], data_bytes=1 << 30, file_bytes=1 << 20, cpu_seconds=20
    )
    with workers(COUNT, limits, "spawn") as run:
        yield run
    assert multiprocessing.active_children() == []


def square(item: int) -> tuple[int, int]:
    time.sleep(0.002 * (item % 3 == 0))
    return item * item, os.getpid()


def test_results_come_in_the_items_order_from_all_processes(tmp_path: pathlib.Path) -> None:
    seen: list[tuple[int, int]] = []
    with started(tmp_path) as run:
        run(square, range(40), seen.append)
        run(square, range(40, 60), seen.append)
    assert [number for number, _ in seen] == [item * item for item in range(60)]
    assert len({process for _, process in seen}) == COUNT
    assert os.getpid() not in {process for _, process in seen}


def test_a_single_processor_does_it_itself() -> None:
    seen: list[tuple[int, int]] = []
    with workers(0, Limits(read=[], write=[], data_bytes=0, file_bytes=0, cpu_seconds=0)) as run:
        assert run is one_by_one
        run(square, range(3), seen.append)
    assert seen == [(item * item, os.getpid()) for item in range(3)]


def test_some_processors_are_found() -> None:
    assert worker_count(4) != 1
    assert 0 <= worker_count(4) <= 4
    assert worker_count(2) in (0, 2)


def test_nothing_is_left_when_there_is_nothing_to_do(tmp_path: pathlib.Path) -> None:
    with started(tmp_path) as run:
        run(square, [], lambda result: pytest.fail(f"got {result}"))


def refuse(item: int) -> int:
    if item == 3:
        raise MalformedFile("tensor 'x' ends")
    if item == 33:
        raise OSError(28, "No space left on device")
    return item


@pytest.mark.parametrize(
    ("items", "expected"), [(range(9), MalformedFile), (range(30, 40), OSError)]
)
def test_an_error_passes_as_it_is(
    tmp_path: pathlib.Path, items: range, expected: type[Exception]
) -> None:
    done: list[int] = []
    with pytest.raises(expected) as raised, started(tmp_path) as run:
        run(refuse, items, done.append)
    assert done == list(items)[: len(done)]
    assert len(done) <= 3
    if isinstance(raised.value, OSError):
        assert raised.value.errno == 28


def note(item: tuple[pathlib.Path, int]) -> int:
    folder, number = item
    time.sleep(0.02)
    (folder / str(number)).write_text("done")
    return number


def test_nothing_is_written_after_a_run_has_ended_early(tmp_path: pathlib.Path) -> None:
    def finish(number: int) -> None:
        if number == 3:
            raise KeyboardInterrupt

    with started(tmp_path) as run:
        with pytest.raises(KeyboardInterrupt):
            run(note, ((tmp_path, number) for number in range(500)), finish)
        found = sorted(tmp_path.iterdir())
        assert multiprocessing.active_children() == []
    time.sleep(0.1)
    assert sorted(tmp_path.iterdir()) == found
    assert 4 <= len(found) < 12


def die(item: int) -> int:
    if item == 5:
        signal.raise_signal(signal.SIGKILL)
    return item


def test_a_process_that_dies_is_an_error_and_no_hang(tmp_path: pathlib.Path) -> None:
    with (
        pytest.raises(RuntimeError, match="a process that wrote weights ended: SIGKILL"),
        started(tmp_path) as run,
    ):
        run(die, range(100), lambda result: None)


def reach(what: str) -> str:
    try:
        if what == "network":
            socket.socket()
        elif what == "fork":
            os.fork()
        else:
            pathlib.Path(what).write_text("mine")
    except OSError as error:
        return type(error).__name__
    return "reached"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux's layers")
def test_each_process_is_confined(tmp_path: pathlib.Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    found: list[str] = []
    with started(inside) as run:
        run(reach, ["network", "fork", str(inside / "a"), str(outside)], found.append)
    assert found == ["PermissionError", "PermissionError", "reached", "PermissionError"]
