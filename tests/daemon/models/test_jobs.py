"""Conversions and inspections with real child processes: sharing, order, cancelling, every failure."""

import asyncio
import contextlib
import os
import pathlib
import signal
import sys
from collections.abc import AsyncIterator

import pytest

from converters.artifact import variant_folder
from daemon.errors import Busy, DaemonError, Invalid, LoadFailed, NoSpace, NotFound, NotYet
from daemon.models.converter_process import sweep_staging
from daemon.models.jobs import ConversionProgress
from tests.daemon.models.shelf import TARGET, Shelf, gguf, until


@pytest.fixture
async def shelf(tmp_path: pathlib.Path) -> AsyncIterator[Shelf]:
    shelf = Shelf(tmp_path)
    yield shelf
    await shelf.conversions.close()
    assert shelf.staging() == []
    for _, pid in shelf.runs():
        assert is_gone(pid)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def convert(shelf: Shelf, digest: str) -> list[ConversionProgress]:
    return [step async for step in shelf.conversions.ensure_artifact(digest, TARGET)]


async def test_converts_once(shelf: Shelf) -> None:
    digest = await shelf.put(gguf(steps=5, seconds=0.05))
    assert shelf.conversions.artifact(digest, TARGET) is None
    steps = await convert(shelf, digest)
    assert steps[0] == ConversionProgress(phase="queued")
    written = [step.done for step in steps if step.phase == "write"]
    assert written == sorted(written)
    assert written[-1] == 5
    folder = shelf.conversions.artifact_folder(digest, TARGET)
    assert folder == shelf.artifacts / digest / variant_folder(TARGET)
    made = shelf.conversions.artifact(digest, TARGET)
    assert made is not None
    assert made.source == digest
    assert await convert(shelf, digest) == []
    assert len(shelf.runs()) == 1
    assert shelf.conversions.jobs() == []
    assert shelf.conversions.outcomes == {"done": 1}


async def test_callers_share_one_job(shelf: Shelf) -> None:
    digest = await shelf.put(gguf(seconds=0.1))
    answers = await asyncio.gather(*(convert(shelf, digest) for _ in range(20)))
    assert all(answers)
    assert len(shelf.runs()) == 1


async def test_one_converter_at_a_time_and_the_others_are_seen_waiting(shelf: Shelf) -> None:
    digests = [await shelf.put(gguf(seconds=0.1, number=number)) for number in range(3)]
    tasks = [asyncio.create_task(convert(shelf, digest)) for digest in digests]
    await until(shelf.runs)
    views = shelf.conversions.jobs()
    assert [view.source for view in views] == digests
    assert [view.progress.phase for view in views[1:]] == ["queued", "queued"]
    assert all(view.waiters == 1 for view in views)
    await asyncio.gather(*tasks)
    assert [source for source, _ in shelf.runs()] == digests


@pytest.mark.parametrize("stubborn", [False, True])
async def test_the_last_to_leave_stops_it(
    shelf: Shelf, stubborn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.models.converter_process._LEAVE_SECONDS", 0.5)
    digest = await shelf.put(gguf(steps=1000, seconds=0.05, stubborn=stubborn))
    tasks = [asyncio.create_task(convert(shelf, digest)) for _ in range(2)]
    await until(shelf.staging)
    ((_, pid),) = shelf.runs()
    for task in tasks:
        assert not is_gone(pid)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert is_gone(pid)
    assert shelf.staging() == []
    assert shelf.conversions.jobs() == []
    assert shelf.conversions.outcomes == {"stopped": 1}


async def test_leaving_between_two_steps_stops_it(shelf: Shelf) -> None:
    digest = await shelf.put(gguf(steps=1000, seconds=0.05))
    async with contextlib.aclosing(shelf.conversions.ensure_artifact(digest, TARGET)) as steps:
        async for step in steps:
            if step.phase == "write":
                break
    ((_, pid),) = shelf.runs()
    assert is_gone(pid)
    assert shelf.staging() == []


async def test_leaving_the_queue_leaves_the_running_one_alone(shelf: Shelf) -> None:
    first = await shelf.put(gguf(seconds=0.1))
    second = await shelf.put(gguf(seconds=0.1, number=2))
    running = asyncio.create_task(convert(shelf, first))
    await until(shelf.runs)
    waiting = asyncio.create_task(convert(shelf, second))
    await until(lambda: len(shelf.conversions.jobs()) == 2)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await running
    assert [source for source, _ in shelf.runs()] == [first]


async def test_who_comes_while_it_is_being_stopped_starts_anew(shelf: Shelf) -> None:
    digest = await shelf.put(gguf(steps=8, seconds=0.05))
    first = asyncio.create_task(convert(shelf, digest))
    await until(shelf.staging)
    first.cancel()
    await asyncio.sleep(0)
    assert await convert(shelf, digest)
    with pytest.raises(asyncio.CancelledError):
        await first
    assert len(shelf.runs()) == 2


@pytest.mark.parametrize(
    ("wanted", "error", "status", "text"),
    [
        ({"fail": "malformed"}, Invalid, 400, "says malformed"),
        ({"fail": "unsupported"}, NotYet, 501, "says unsupported"),
        ({"fail": "space"}, NoSpace, 507, "says space"),
        ({"fail": "internal"}, LoadFailed, 500, "says internal"),
        ({"then": "die"}, LoadFailed, 500, "SIGKILL"),
        ({"then": "leave"}, LoadFailed, 500, "exit code 9"),
        ({"then": "babble"}, LoadFailed, 500, "endless line"),
        ({"then": "nothing"}, LoadFailed, 500, "left no artifact"),
    ],
)
async def test_failures_reach_every_waiter(
    shelf: Shelf, wanted: dict[str, object], error: type[DaemonError], status: int, text: str
) -> None:
    digest = await shelf.put(gguf(**wanted))
    results = await asyncio.gather(
        *(convert(shelf, digest) for _ in range(3)), return_exceptions=True
    )
    for result in results:
        assert isinstance(result, error)
        assert (result.status, text in result.message) == (status, True), result.message
    assert shelf.conversions.artifact(digest, TARGET) is None
    assert shelf.staging() == []
    assert shelf.conversions.outcomes == {"failed": 1}


async def test_a_killed_converter_is_an_error_and_the_next_one_works(shelf: Shelf) -> None:
    digest = await shelf.put(gguf(steps=30, seconds=0.05))
    task = asyncio.create_task(convert(shelf, digest))
    await until(shelf.staging)
    os.kill(shelf.runs()[0][1], signal.SIGKILL)
    with pytest.raises(LoadFailed, match="SIGKILL"):
        await task
    assert shelf.staging() == []
    assert await convert(shelf, digest)


async def test_closing_stops_everything(shelf: Shelf) -> None:
    digests = [await shelf.put(gguf(steps=1000, seconds=0.05, number=n)) for n in range(2)]
    tasks = [asyncio.create_task(convert(shelf, digest)) for digest in digests]
    await until(shelf.staging)
    await shelf.conversions.close()
    for task in tasks:
        with pytest.raises(Busy):
            await task
    assert is_gone(shelf.runs()[0][1])


async def test_an_unreadable_artifact_is_made_again(shelf: Shelf) -> None:
    digest = await shelf.put(gguf())
    folder = shelf.conversions.artifact_folder(digest, TARGET)
    folder.mkdir(parents=True)
    (folder / "artifact.json").write_text("{}")
    await convert(shelf, digest)
    assert shelf.conversions.artifact(digest, TARGET) is not None


async def test_sweeping_spares_the_living(shelf: Shelf) -> None:
    digest = await shelf.put(gguf(steps=20, seconds=0.05))
    task = asyncio.create_task(convert(shelf, digest))
    await until(shelf.staging)
    folder = shelf.artifacts / digest
    # Our own number is alive, but no converter: a number that was given out again.
    for pid in (os.getpid(), 2**22 + 12345):
        (folder / f"{variant_folder(TARGET)}.staging-{pid}").mkdir()
    (shelf.artifacts / ("0" * 64) / "onnx-cpu-f1.staging-0").mkdir(parents=True)
    sweep_staging(shelf.artifacts)
    assert shelf.staging() == [f"{variant_folder(TARGET)}.staging-{shelf.runs()[0][1]}"]
    assert not (shelf.artifacts / ("0" * 64)).exists()
    await task


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_it_makes_way_for_requests(shelf: Shelf) -> None:
    digest = await shelf.put(gguf(steps=100, seconds=0.02))
    task = asyncio.create_task(convert(shelf, digest))
    await until(shelf.runs)
    pid = shelf.runs()[0][1]
    assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0)
    shelf.is_busy = True
    await until(lambda: os.getpriority(os.PRIO_PROCESS, pid) == 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# ---- inspections ----


def looks(shelf: Shelf) -> int:
    file = shelf.home / "looks"
    return len(file.read_text().splitlines()) if file.exists() else 0


async def test_a_blob_is_looked_at_once(shelf: Shelf) -> None:
    digest = await shelf.put(gguf(look_seconds=0.2))
    assert shelf.conversions.known_inspection(digest) is None
    found = await asyncio.gather(*(shelf.conversions.inspect(digest) for _ in range(10)))
    assert {inspection.digest for inspection in found} == {digest}
    assert looks(shelf) == 1
    again = Shelf(shelf.home.parent)
    assert again.conversions.known_inspection(digest) == found[0]
    assert (await again.conversions.arrays(digest)).keys() == {"tokenizer.ggml.tokens"}
    assert looks(shelf) == 1


async def test_a_waiter_that_leaves_does_not_stop_the_look(shelf: Shelf) -> None:
    digest = await shelf.put(gguf(look_seconds=0.3))
    first = asyncio.create_task(shelf.conversions.inspect(digest))
    second = asyncio.create_task(shelf.conversions.inspect(digest))
    await asyncio.sleep(0.1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await second).digest == digest
    assert looks(shelf) == 1


async def test_a_refused_file_is_not_looked_at_again(shelf: Shelf) -> None:
    digest = await shelf.put(gguf(fail="malformed", fails_at="inspect"))
    for _ in range(2):
        with pytest.raises(Invalid, match="says malformed"):
            await shelf.conversions.inspect(digest)
    (shelf.store.blobs.path(digest)).unlink()
    with pytest.raises(Invalid, match="says malformed"):
        await shelf.conversions.inspect(digest)


async def test_a_missing_blob(shelf: Shelf) -> None:
    with pytest.raises(NotFound):
        await shelf.conversions.inspect("0" * 64)


async def test_a_preview_leaves_nothing(shelf: Shelf, tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.gguf").write_bytes(gguf())
    assert (await shelf.conversions.preview(tmp_path / "a.gguf")).name == "stand-in"
    (tmp_path / "b.gguf").write_bytes(gguf(fail="unsupported", fails_at="inspect"))
    with pytest.raises(NotYet):
        await shelf.conversions.preview(tmp_path / "b.gguf")
    assert list(shelf.home.iterdir()) == []
