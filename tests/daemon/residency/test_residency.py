"""Residency with real child processes that have no model: leases, timers, eviction, ends."""

from __future__ import annotations

import asyncio
import datetime

import pytest

from backends.types import CountTokens, Delta, Embed, Render
from daemon.errors import Busy, LoadFailed
from tests.daemon.residency.processes import chat
from tests.daemon.residency.residencies import Make, text_of, until
from tests.daemon.residency.shelf import Shelf, model

# ---- the whole road ----


async def test_a_model_is_loaded_used_and_stays(make: Make):
    residency = make()
    assert repr(residency) == "<Residency empty; 0 waiting>"
    async with await residency.acquire(model("a")) as lease:
        assert await text_of(lease, "count 2") == "0 1 "
        assert await lease.count(CountTokens(request_id="c", chat=chat("x"))) == 7
        assert await lease.render(Render(request_id="d", chat=chat("x"))) == "<x>"
        assert len((await lease.embed(Embed(request_id="e", texts=("x",)))).vectors) == 1
        assert lease.loaded.rows == 4
    assert repr(residency) == "<Residency a:latest ready users=0 rows=0/4; 0 waiting>"
    first = lease.resident.worker
    async with await residency.acquire(model("a")) as lease:
        assert lease.resident.worker is first


async def test_names_of_one_artifact_share_a_worker(make: Make):
    residency = make(Shelf(a="/same/1000", b="/same/1000"))
    one, other = await residency.acquire(model("a")), await residency.acquire(model("b"))
    assert one.resident is other.resident
    assert repr(residency) == "<Residency a:latest ready users=2 rows=2/4; 0 waiting>"
    one.release()
    other.release()
    assert [shown.name for shown in residency.loaded()] == ["a:latest"]
    residency.unload("a:latest")
    assert [shown.name for shown in residency.loaded()] == ["b:latest"]
    residency.unload("b:latest")
    assert residency.loaded() == []
    await until(lambda: repr(residency) == "<Residency empty; 0 waiting>")


async def test_ten_at_once_load_one_worker(make: Make):
    residency = make(rows=10)
    leases = await asyncio.gather(*(residency.acquire(model("a")) for _ in range(10)))
    assert len({id(lease.resident) for lease in leases}) == 1
    for lease in leases:
        lease.release()
        lease.release()
    assert repr(residency) == "<Residency a:latest ready users=0 rows=0/10; 0 waiting>"


async def test_what_is_shown(make: Make):
    residency = make(keep_alive_seconds=100.0)
    lease = await residency.acquire(model("a"))
    (shown,) = residency.loaded()
    now = datetime.datetime.now().astimezone()
    assert (shown.name, shown.size, shown.size_vram, shown.users) == ("a:latest", 1000, 0, 1)
    assert (shown.context_length, shown.device) == (4096, "cpu")
    assert 90 < (shown.expires_at - now).total_seconds() <= 100
    lease.release()
    async with await residency.acquire(model("a"), keep_alive_seconds=None):
        pass
    assert residency.loaded()[0].expires_at.year - now.year in (291, 292, 293)


# ---- keep-alive ----


async def test_the_timer_starts_when_the_last_user_leaves(make: Make):
    residency = make(keep_alive_seconds=0.3)
    lease = await residency.acquire(model("a"))
    await asyncio.sleep(0.5)
    assert len(residency.loaded()) == 1
    lease.release()
    await asyncio.sleep(0.1)
    assert len(residency.loaded()) == 1
    await until(lambda: repr(residency) == "<Residency empty; 0 waiting>")


async def test_a_new_request_stops_the_timer(make: Make):
    residency = make(keep_alive_seconds=0.2)
    (await residency.acquire(model("a"))).release()
    lease = await residency.acquire(model("a"))
    await asyncio.sleep(0.4)
    assert len(residency.loaded()) == 1
    lease.release()


async def test_zero_unloads_after_what_is_in_flight(make: Make):
    residency = make()
    one = await residency.acquire(model("a"))
    other = await residency.acquire(model("a"), keep_alive_seconds=0.0)
    other.release()
    assert repr(residency) == "<Residency a:latest ready users=1 rows=1/4; 0 waiting>"
    one.release()
    assert residency.loaded() == []


@pytest.mark.parametrize("forever", [None, -1.0])
async def test_a_keep_alive_is_remembered_until_another_is_given(make: Make, forever: float | None):
    residency = make(keep_alive_seconds=0.0)
    (await residency.acquire(model("a"), keep_alive_seconds=forever)).release()
    (await residency.acquire(model("a"))).release()
    await asyncio.sleep(0.1)
    assert len(residency.loaded()) == 1
    (await residency.acquire(model("a"), keep_alive_seconds=0.0)).release()
    assert residency.loaded() == []


async def test_unload_by_name(make: Make):
    residency = make()
    assert not residency.unload("a:latest")
    lease = await residency.acquire(model("a"))
    assert residency.unload("a:latest")
    assert len(residency.loaded()) == 1
    assert await text_of(lease, "count 1") == "0 "
    lease.release()
    assert residency.loaded() == []
    async with await residency.acquire(model("a")) as lease:
        assert await text_of(lease, "count 1") == "0 "


# ---- eviction ----


async def test_the_idle_model_used_longest_ago_makes_room(make: Make):
    residency = make(max_loaded=2)
    for name in ("a", "b", "a", "c"):
        (await residency.acquire(model(name))).release()
    assert {shown.name for shown in residency.loaded()} == {"a:latest", "c:latest"}


async def test_memory_makes_room_too(make: Make):
    shelf = Shelf(a="/a/9000", b="/b/9000")
    shelf.sizes = {"a": 5000, "b": 5000}
    residency = make(shelf, free=15_000)
    for name in ("a", "b"):
        (await residency.acquire(model(name))).release()
    assert {shown.name for shown in residency.loaded()} == {"b:latest"}


async def test_a_busy_model_is_waited_for_and_takes_no_later_request(make: Make):
    residency = make(max_loaded=1)
    busy = await residency.acquire(model("a"))
    order: list[str] = []

    async def use(name: str) -> None:
        async with await residency.acquire(model(name)):
            order.append(name)

    tasks = []
    for name in ("b", "a"):
        tasks.append(asyncio.create_task(use(name)))
        await asyncio.sleep(0.05)
    assert order == []
    assert repr(residency) == "<Residency a:latest ready users=1 rows=1/4; 2 waiting>"
    busy.release()
    await asyncio.gather(*tasks)
    assert order == ["b", "a"]


async def test_a_model_that_fits_in_no_way_is_refused_with_both_figures(make: Make):
    shelf = Shelf()
    shelf.sizes = {"huge": 8 << 30}
    residency = make(shelf, free=2 << 30)
    keeps = await residency.acquire(model("a"))
    with pytest.raises(LoadFailed) as caught:
        await residency.acquire(model("huge"))
    assert caught.value.message == (
        "model requires more system memory (8.0 GiB) than is available (2.0 GiB): 'huge:latest'"
    )
    keeps.release()
    assert [shown.name for shown in residency.loaded()] == ["a:latest"]


# ---- context length ----


async def test_longer_rows_reload_once_idle_and_are_then_shared(make: Make):
    residency = make()
    short = await residency.acquire(model("a"))
    longer = asyncio.create_task(residency.acquire(model("a"), context_length=10_000))
    await asyncio.sleep(0.1)
    assert not longer.done()
    short.release()
    async with await longer as lease:
        assert lease.loaded.context_length == 10_000
        async with await residency.acquire(model("a"), context_length=512) as other:
            assert other.resident is lease.resident


async def test_rows_are_never_longer_than_the_model(make: Make):
    residency = make()
    async with await residency.acquire(model("a"), context_length=1_000_000) as lease:
        assert lease.loaded.context_length == 32768
        async with await residency.acquire(model("a"), context_length=2_000_000) as other:
            assert other.resident is lease.resident


async def test_longrope_has_a_worker_for_long_rows_of_its_own(make: Make):
    shelf = Shelf()
    shelf.original_context_length = 4096
    residency = make(shelf)
    short = await residency.acquire(model("a"))
    longer = await residency.acquire(model("a"), context_length=8192)
    assert (short.resident.key.is_long, longer.resident.key.is_long) == (False, True)


# ---- the queue ----


async def test_rows_are_shared_out_and_given_on(make: Make):
    residency = make(rows=1)
    lease = await residency.acquire(model("a"))
    waiting = asyncio.create_task(residency.acquire(model("a"), client="b"))
    await asyncio.sleep(0.05)
    embedding = await residency.acquire(model("a"), wants_row=False)
    embedding.release()
    assert not waiting.done()
    (seen,) = residency.queue()
    assert (seen.name, seen.client, seen.position, seen.waits_for) == (
        "a:latest", "b", 1, "memory or a row",
    )  # fmt: skip
    # The row is free when the chat has ended, even if its reader has not noticed.
    stream = lease.chat(chat("count 3"))
    (await asyncio.wait_for(waiting, 5)).release()
    assert [piece.finish async for piece in stream if isinstance(piece, Delta)][-1] == "stop"
    lease.release()
    assert repr(residency) == "<Residency a:latest ready users=0 rows=0/1; 0 waiting>"


async def test_the_queue_is_bounded_but_a_free_model_is_not_refused(make: Make):
    shelf = Shelf()
    residency = make(shelf, max_queue=1)
    (await residency.acquire(model("a"))).release()
    shelf.gate.clear()
    converting = asyncio.create_task(residency.acquire(model("b")))
    await asyncio.sleep(0.05)
    with pytest.raises(Busy, match="please try again"):
        await residency.acquire(model("c"))
    (await residency.acquire(model("a"))).release()
    shelf.gate.set()
    (await converting).release()
