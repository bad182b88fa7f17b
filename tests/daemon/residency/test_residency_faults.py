"""Residency when requests are cancelled, workers die and the daemon stops: nothing stays held."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import msgspec
import pytest

from daemon.errors import Busy, LoadFailed, NotFound, WorkerDied
from daemon.residency.residency import Residency
from daemon.residency.settings import ResidencySettings
from daemon.residency.worker_process import WorkerProcess
from tests.daemon.residency.processes import QUICK, STANDIN, chat, has_process
from tests.daemon.residency.residencies import FREE, Make, text_of, until
from tests.daemon.residency.shelf import Shelf, model

# ---- cancelling at every stage ----


async def test_cancelled_while_converting(make: Make):
    shelf = Shelf()
    shelf.gate.clear()
    residency = make(shelf)
    await cancelled(residency.acquire(model("a")))
    assert repr(residency) == "<Residency empty; 0 waiting>"


async def test_cancelled_while_loading_it_still_expires(make: Make):
    residency = make(keep_alive_seconds=0.0)
    task = asyncio.create_task(residency.acquire(model("a")))
    await until(lambda: "loading" in repr(residency))
    await cancelled(task)
    assert "0 waiting" in repr(residency)
    await until(lambda: repr(residency) == "<Residency empty; 0 waiting>")


async def test_cancelled_while_waiting_for_a_row(make: Make):
    residency = make(rows=1)
    lease = await residency.acquire(model("a"))
    await cancelled(residency.acquire(model("a")))
    assert repr(residency) == "<Residency a:latest ready users=1 rows=1/1; 0 waiting>"
    lease.release()


async def test_cancelled_in_the_moment_of_being_served(make: Make):
    residency = make(rows=1)
    lease = await residency.acquire(model("a"))
    task = asyncio.create_task(residency.acquire(model("a")))
    await asyncio.sleep(0.05)
    lease.release()  # books the row for the task, which has not run yet
    assert "users=1 rows=1/1" in repr(residency)
    await cancelled(task, seconds=0)
    assert repr(residency) == "<Residency a:latest ready users=0 rows=0/1; 0 waiting>"


async def test_cancelled_while_generating(make: Make):
    residency = make()
    reading = asyncio.Event()

    async def generate() -> None:
        async with await residency.acquire(model("a")) as lease:
            stream = lease.chat(chat("hang"))
            reading.set()
            async for _ in stream:
                pass

    task = asyncio.create_task(generate())
    await reading.wait()
    worker = next(iter(residency._residents.values())).worker
    assert worker is not None and worker.active == 1
    await cancelled(task)
    assert worker.active == 0
    assert repr(residency) == "<Residency a:latest ready users=0 rows=0/4; 0 waiting>"


async def cancelled(work: Any, seconds: float = 0.05) -> None:
    task = asyncio.ensure_future(work)
    if seconds:
        await asyncio.sleep(seconds)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# ---- faults ----


async def test_a_crash_fails_its_requests_and_the_next_gets_a_fresh_worker(make: Make):
    residency = make()
    one = await residency.acquire(model("a"))
    other = await residency.acquire(model("a"))
    hung = other.chat(chat("hang", "h"))
    assert one.resident.worker is not None
    pid = one.resident.worker.pid
    with pytest.raises(WorkerDied, match="unexpectedly stopped"):
        await text_of(one, "die")
    with pytest.raises(WorkerDied, match="unexpectedly stopped"):
        await anext(hung)
    with pytest.raises(WorkerDied):
        one.chat(chat("count 1", "again"))
    async with await residency.acquire(model("a")) as fresh:
        assert fresh.resident is not one.resident
        assert await text_of(fresh, "count 1") == "0 "
        one.release()
        other.release()
        assert repr(residency) == "<Residency a:latest ready users=1 rows=0/4; 0 waiting>"
    assert not has_process(pid)


async def test_a_worker_that_cannot_be_killed_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
):
    """As one that a driver holds: another is started beside it, and the watchdog is told."""
    limits = msgspec.structs.replace(QUICK, probe_seconds=0.05, stuck_seconds=0.3, lost_seconds=0.2)
    residency = Residency(
        ResidencySettings(),
        Shelf(),
        command=(*STANDIN, "--deaf"),
        worker_limits=limits,
        measure_free=lambda held: FREE - held,
    )
    with monkeypatch.context() as deaf:
        deaf.setattr(WorkerProcess, "_signal", lambda *_: None)
        async with await residency.acquire(model("a")) as lease:
            with pytest.raises(WorkerDied, match="no progress for"):
                await text_of(lease, "hang")
            assert [shown.serving for shown in residency.loaded()] == ["stalled"]
            async with await residency.acquire(model("a")) as other:
                assert await text_of(other, "count 1") == "0 "
        assert lease.resident.worker is not None
        pid = lease.resident.worker.pid
        assert residency.starter.lost == f"a:latest (process {pid})"
    assert residency.tally.deaths == {("a:latest",): 1}
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not residency.starter.lost)
    await lease.resident.worker._logging
    await residency.close()
    assert not has_process(pid)


@pytest.mark.parametrize(
    ("word", "text"), [("fail", "no such weights"), ("die", "exit status 3"), ("stall", "0.2 s")]
)
async def test_a_failed_load_says_which_model_and_how_much(make: Make, word: str, text: str):
    residency = make(Shelf(a=f"/x/{word}"), free=3 << 30, load_timeout_seconds=0.2)
    failures = await asyncio.gather(
        *(residency.acquire(model("a")) for _ in range(2)), return_exceptions=True
    )
    for failure in failures:
        assert isinstance(failure, LoadFailed)
        assert failure.message.startswith("model 'a:latest' could not be loaded: ")
        assert text in failure.message
        assert failure.message.endswith("(needs about 0.0 GiB, 3.0 GiB free)")
    assert repr(residency) == "<Residency empty; 0 waiting>"
    async with await residency.acquire(model("b")) as lease:
        assert await text_of(lease, "count 1") == "0 "
    assert residency.tally.loads == {("a:latest", "failed"): 1, ("b:latest", "loaded"): 1}


async def test_what_the_placer_refuses_leaves_nothing_waiting(make: Make):
    residency = make()
    with pytest.raises(NotFound):
        await residency.acquire(model("missing"))
    assert repr(residency) == "<Residency empty; 0 waiting>"


# ---- the end ----


async def test_closing_ends_everything_at_every_stage(make: Make):
    residency = make(Shelf(slow="/x/stall"), rows=1)
    lease = await residency.acquire(model("a"))
    stream = lease.chat(chat("hang"))
    waits = asyncio.create_task(residency.acquire(model("a")))
    loads = asyncio.create_task(residency.acquire(model("slow")))
    await until(lambda: "slow:latest loading" in repr(residency))
    await residency.close()
    await residency.close()
    assert repr(residency) == "<Residency empty; 0 waiting, closed>"
    for task in (waits, loads):
        with pytest.raises(Busy, match="stopping"):
            await task
    with pytest.raises(Busy):
        await anext(stream)
    lease.release()
    with pytest.raises(Busy):
        await residency.acquire(model("a"))


# ---- devices with their own memory ----


async def test_a_device_at_fault_is_avoided_and_the_request_served(
    make: Make, caplog: pytest.LogCaptureFixture
):
    shelf = Shelf(a="/a/device")
    shelf.device_bytes = 100_000
    residency = make(shelf)
    async with await residency.acquire(model("a")) as lease:
        assert await text_of(lease, "count 2") == "0 1 "
        (shown,) = residency.loaded()
        assert shown.device == "cpu"
    assert shelf.avoided == [("a", "cuda", "model 'a:latest' could not be loaded: no such weights")]
    assert "no such weights; another device is taken" in caplog.text


async def test_a_worker_that_dies_on_a_device_is_that_devices_fault(make: Make):
    """A broken driver may take the process down; another device may still do."""
    shelf = Shelf(a="/a/die")
    shelf.device_bytes = 100_000
    residency = make(shelf)
    async with await residency.acquire(model("a")) as lease:
        assert await text_of(lease, "count 2") == "0 1 "
        assert lease.resident.placement.device == "cpu"
    ((_, device, reason),) = shelf.avoided
    assert device == "cuda" and "exit status 3" in reason


async def test_all_who_wait_move_to_the_other_device(make: Make):
    shelf = Shelf(a="/a/device")
    shelf.device_bytes = 100_000
    residency = make(shelf)
    leases = await asyncio.gather(*(residency.acquire(model("a")) for _ in range(3)))
    assert {lease.resident.placement.device for lease in leases} == {"cpu"}
    for lease in leases:
        lease.release()


async def test_a_model_larger_than_the_device_is_placed_elsewhere(make: Make):
    shelf = Shelf(a="/a/1000")
    shelf.device_bytes = 50
    residency = make(shelf)
    (await residency.acquire(model("a"))).release()
    assert shelf.avoided[0][2].startswith("the model needs ")
