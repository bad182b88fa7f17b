"""One worker process: real children, real sockets, every kind of death."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time

import msgspec
import pytest

from backends.types import Counted, CountTokens, Delta, Embed, Embedded, Render, Rendered
from daemon.errors import Busy, Cancelled, Internal, Invalid, LoadFailed, NotYet, WorkerDied
from daemon.residency.answer import Answer, AnswerStream
from daemon.residency.worker_process import WorkerProcess
from tests.daemon.residency.processes import (
    QUICK,
    chat,
    has_process,
    load_order,
    loaded_standin,
    spawn_standin,
)


def text_of(pieces: list[Answer]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Delta))


async def read(stream: AnswerStream) -> list[Answer]:
    return [piece async for piece in stream]


async def test_it_loads_answers_and_leaves_nothing_behind(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "hearth.worker")
    worker = await spawn_standin()
    loaded = await worker.load(load_order("/x/12345"), stall_seconds=10)
    assert loaded.resident_bytes == 12345
    pieces = await read(worker.start(chat("count 3")))
    assert text_of(pieces) == "0 1 2 "
    assert [p.finish for p in pieces if isinstance(p, Delta)][-1] == "stop"
    assert repr(worker) == f"<WorkerProcess standin open, pid {worker.pid}, 0 requests>"
    await worker.stop()
    await worker.stop()
    assert not has_process(worker.pid) and not worker.is_alive
    assert "standin: stand-in is up" in caplog.messages


async def test_requests_with_one_answer():
    worker = await loaded_standin()
    counted = await worker.ask(CountTokens(request_id="c", chat=chat("x")), Counted)
    rendered = await worker.ask(Render(request_id="d", chat=chat("x")), Rendered)
    embedded = await worker.ask(Embed(request_id="e", texts=("x",)), Embedded)
    assert (counted.tokens, rendered.prompt, len(embedded.vectors)) == (7, "<x>", 1)
    await worker.stop()


async def test_many_requests_interleave():
    worker = await loaded_standin()
    streams = [worker.start(chat("count 50", f"r{number}")) for number in range(20)]
    answers = await asyncio.gather(*map(read, streams))
    expected = "".join(f"{number} " for number in range(50))
    assert {text_of(answer) for answer in answers} == {expected}
    await worker.stop()


@pytest.mark.parametrize(
    ("code", "kind"), [("too_long", Invalid), ("unsupported", NotYet), ("cancelled", Cancelled)]
)
async def test_failures_become_our_errors(code: str, kind: type[Exception]):
    worker = await loaded_standin()
    with pytest.raises(kind, match="as asked"):
        await read(worker.start(chat(f"fail {code}")))
    await worker.stop()


async def test_closing_a_stream_cancels_the_request(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "hearth.worker")
    worker = await loaded_standin()
    ended = asyncio.Event()
    async with worker.start(chat("hang", "mine"), ended.set):
        assert worker.active == 1
    assert ended.is_set() and worker.active == 0
    assert text_of(await read(worker.start(chat("count 1")))) == "0 "
    await worker.stop()
    assert "standin: cancelled mine" in caplog.messages


async def test_a_request_id_is_not_used_twice_at_once():
    worker = await loaded_standin()
    stream = worker.start(chat("hang"))
    with pytest.raises(Internal, match="in use"):
        worker.start(chat("hang"))
    stream.close()
    await worker.stop()


async def test_a_request_larger_than_a_frame_is_refused():
    worker = await loaded_standin()
    with pytest.raises(Invalid, match="too large"):
        worker.start(chat("x" * (64 << 20)))
    assert worker.active == 0
    await worker.stop()


async def test_a_reader_that_stops_does_not_stop_the_others():
    limits = msgspec.structs.replace(QUICK, unread_bytes=50_000)
    worker = await loaded_standin(limits)
    lazy = worker.start(chat("burst 2000 1000", "lazy"))
    assert text_of(await read(worker.start(chat("count 2")))) == "0 1 "
    with pytest.raises(Cancelled, match="50000 bytes"):
        await read(lazy)
    await worker.stop()


async def test_a_reader_that_sleeps_is_cancelled_by_time():
    limits = msgspec.structs.replace(QUICK, unread_seconds=0.1, probe_seconds=0.05)
    worker = await loaded_standin(limits)
    lazy = worker.start(chat("hang", "lazy"))
    lazy.push(Delta(request_id="lazy", text="unread"))
    await asyncio.sleep(0.4)
    assert worker.active == 0
    with pytest.raises(Cancelled, match="not read for"):
        await read(lazy)
    await worker.stop()


async def test_a_crash_fails_every_open_request_after_what_it_said():
    worker = await loaded_standin()
    others = [worker.start(chat("hang", f"r{number}")) for number in range(3)]
    dying = worker.start(chat("die"))
    assert await anext(dying) == Delta(request_id="r", text="last words")
    for stream in (dying, *others):
        with pytest.raises(WorkerDied) as caught:
            await read(stream)
        assert caught.value.message.startswith("model runner has unexpectedly stopped, this may")
        assert caught.value.message.endswith(": signal SIGKILL")
        assert await read(stream) == []
    with pytest.raises(WorkerDied):
        worker.start(chat("count 1"))
    await worker.wait_ended()
    assert not has_process(worker.pid)


async def test_stopping_ends_open_requests_and_says_why():
    worker = await loaded_standin()
    stream = worker.start(chat("hang"))
    await worker.stop()
    with pytest.raises(Busy):
        await read(stream)


async def test_a_deaf_process_is_killed():
    worker = await spawn_standin("--deaf")
    started = time.monotonic()
    await worker.stop()
    assert not has_process(worker.pid)
    assert 0.6 <= time.monotonic() - started < 5


async def test_a_cancelled_stop_still_ends_the_process():
    worker = await spawn_standin("--deaf")
    stopping = asyncio.ensure_future(worker.stop())
    await asyncio.sleep(0.05)
    stopping.cancel()
    await asyncio.wait_for(worker.wait_ended(), 5)
    assert not has_process(worker.pid)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--greeting", "wrong"), "different builds; restart the daemon"),
        (("--greeting", "none"), "timed out waiting"),
        (("--unknown-option",), "exit status 2"),
    ],
)
async def test_a_child_that_does_not_greet_is_refused(options: tuple[str, ...], text: str):
    limits = msgspec.structs.replace(QUICK, hello_seconds=1.0)
    before = set(_children())
    with pytest.raises(LoadFailed, match=text):
        await spawn_standin(*options, limits=limits)
    assert set(_children()) == before


async def test_a_command_that_does_not_exist_is_refused():
    with pytest.raises(LoadFailed, match="cannot be started"):
        await WorkerProcess.spawn("none", command=("/nowhere/to/be/found",))


async def test_a_cancelled_spawn_leaves_no_process():
    before = set(_children())
    spawning = asyncio.ensure_future(spawn_standin("--greeting", "none"))
    await asyncio.sleep(0.1)
    spawning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await spawning
    await asyncio.sleep(0.1)
    assert set(_children()) == before


@pytest.mark.parametrize(
    ("word", "kind", "text"),
    [
        ("fail", LoadFailed, "no such weights"),
        ("stall", LoadFailed, "no progress for 0.2 s"),
        ("die", WorkerDied, "exit status 3"),
    ],
)
async def test_a_load_that_goes_wrong(word: str, kind: type[Exception], text: str):
    worker = await spawn_standin()
    with pytest.raises(kind, match=text):
        await worker.load(load_order(f"/x/{word}"), stall_seconds=0.2 if word == "stall" else 10)
    await worker.stop()
    assert not has_process(worker.pid)


WATCHFUL = msgspec.structs.replace(QUICK, probe_seconds=0.05, stuck_seconds=0.3)


@pytest.mark.parametrize("word", ["hang", "wedge"])
async def test_a_wedged_worker_is_killed_with_a_clear_error(word: str):
    worker = await loaded_standin(WATCHFUL)
    with pytest.raises(WorkerDied, match="no progress for"):
        await asyncio.wait_for(read(worker.start(chat(word))), 5)
    await asyncio.wait_for(worker.wait_ended(), 5)
    assert not has_process(worker.pid)


async def test_a_worker_whose_engine_steps_is_left_alone():
    worker = await loaded_standin(WATCHFUL)
    stream = worker.start(chat("steps"))
    await asyncio.sleep(0.8)
    assert worker.is_alive
    stream.close()
    await worker.stop()


async def test_steps_that_bring_nobody_further_end_too():
    worker = await loaded_standin(msgspec.structs.replace(WATCHFUL, fruitless_seconds=0.5))
    with pytest.raises(WorkerDied, match="though its engine steps"):
        await asyncio.wait_for(read(worker.start(chat("steps"))), 5)
    await asyncio.wait_for(worker.wait_ended(), 5)


async def test_a_worker_that_no_signal_ends_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """As one that a driver holds: its requests end all the same, and so does the waiting for it."""
    limits = msgspec.structs.replace(WATCHFUL, lost_seconds=0.2)
    worker = await spawn_standin("--deaf", limits=limits)
    await worker.load(load_order("/x/1000"), stall_seconds=10)
    monkeypatch.setattr(WorkerProcess, "_signal", lambda *_: None)
    stream = worker.start(chat("hang"))
    assert not worker.is_stalled
    with pytest.raises(WorkerDied, match="no progress for"):
        await asyncio.wait_for(read(stream), 5)
    assert worker.is_stalled and not worker.is_lost
    await asyncio.wait_for(worker.wait_ended(), 5)
    assert worker.is_lost and has_process(worker.pid)
    assert "was killed and does not end" in caplog.text
    os.kill(worker.pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        while worker.is_lost:  # noqa: ASYNC110  nothing announces it
            await asyncio.sleep(0.01)
        await worker._logging
    assert not has_process(worker.pid)


async def test_an_idle_worker_is_left_alone():
    worker = await loaded_standin(WATCHFUL)
    await asyncio.sleep(0.5)
    assert text_of(await read(worker.start(chat("count 1")))) == "0 "
    await worker.stop()


async def test_an_external_kill_of_an_idle_worker_is_noticed():
    worker = await loaded_standin()
    os.kill(worker.pid, signal.SIGKILL)
    await asyncio.wait_for(worker.wait_ended(), 5)
    assert not worker.is_alive


def _children() -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process().children(recursive=True)]
