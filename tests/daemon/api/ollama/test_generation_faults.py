"""Generation that does not end as it should: errors, workers that die, clients that leave, full queues."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from backends.scripted.script import Script
from tests.daemon.api.rig import Rig, api_rig, lines, until


@pytest.fixture
async def rig(tmp_path: pathlib.Path) -> AsyncIterator[Rig]:
    async with api_rig(tmp_path) as rig:
        await rig.add_model("plain")
        yield rig


async def test_an_error_in_the_middle_is_the_last_line(rig: Rig) -> None:
    answer = await rig.post("/api/generate", model="plain", prompt="break")
    events = lines(answer)
    assert answer.status_code == 200
    assert events[-1].keys() == {"error"}
    assert not any(event.get("done") for event in events)


async def test_a_worker_that_dies_is_an_error_and_the_next_request_works(rig: Rig) -> None:
    answer = await rig.post("/api/generate", model="plain", prompt="crash")
    assert "model runner has unexpectedly stopped" in lines(answer)[-1]["error"]
    answer = await rig.post("/api/generate", model="plain", prompt="crash", stream=False)
    assert answer.status_code == 500
    answer = await rig.post("/api/generate", model="plain", prompt="hi", stream=False)
    assert answer.json()["response"] == "Hello wörld."


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_the_model_at_once(rig: Rig, stream: bool) -> None:
    body = {"model": "plain", "prompt": "slow", "stream": stream}
    leaving = asyncio.create_task(_post_patiently(rig.base, body))
    await until(lambda: any(model.users for model in rig.services.residency.loaded()))
    await asyncio.sleep(0.1)
    await _leave(leaving)
    await until(lambda: not any(model.users for model in rig.services.residency.loaded()))
    assert len(rig.services.residency.loaded()) == 1


async def test_a_client_that_leaves_while_the_model_loads(rig: Rig) -> None:
    await rig.add_model("heavy", script=Script(load_seconds=0.5))
    leaving = asyncio.create_task(_post_patiently(rig.base, {"model": "heavy", "prompt": "x"}))
    await until(lambda: rig.services.residency.loaded())
    await _leave(leaving)
    answer = await rig.post("/api/generate", model="heavy", prompt="x", stream=False)
    assert answer.json()["done_reason"] == "stop"
    assert not any(model.users for model in rig.services.residency.loaded())


async def _leave(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _post_patiently(base: str, body: dict[str, Any]) -> None:
    async with httpx.AsyncClient(timeout=None) as client:
        await client.post(f"{base}/api/generate", json=body)


async def test_two_clients_are_answered_side_by_side(rig: Rig) -> None:
    slow = asyncio.create_task(_post_patiently(rig.base, {"model": "plain", "prompt": "slow"}))
    await until(lambda: any(model.users for model in rig.services.residency.loaded()))
    answer = await rig.post("/api/generate", model="plain", prompt="count", stream=False)
    assert answer.json()["response"] == "one two three"
    assert not slow.done()
    await _leave(slow)


async def test_a_load_that_fails_is_an_error_with_a_status(rig: Rig) -> None:
    await rig.add_model("broken", script=Script(load_fault="fail"))
    answer = await rig.post("/api/generate", model="broken", prompt="x")
    assert answer.status_code == 500
    assert answer.json()["error"]
    assert answer.headers["content-type"] == "application/json"


async def test_a_full_queue_says_so_and_when_to_come_again(tmp_path: pathlib.Path) -> None:
    async with api_rig(tmp_path, max_queue=1, num_parallel=1) as rig:
        await rig.add_model("plain")
        body, residency = {"model": "plain", "prompt": "slow"}, rig.services.residency
        held = [asyncio.create_task(_post_patiently(rig.base, body))]
        await until(lambda: any(model.users for model in residency.loaded()))
        held.append(asyncio.create_task(_post_patiently(rig.base, body)))
        await until(lambda: len(residency.queue()) == 1)
        for stream in (True, False):
            answer = await rig.post("/api/generate", model="plain", prompt="hi", stream=stream)
            assert answer.status_code == 503
            full = "server busy, please try again.  maximum pending requests exceeded"
            assert answer.json() == {"error": full}
            assert int(answer.headers["Retry-After"]) > 0
        for task in held:
            await _leave(task)
