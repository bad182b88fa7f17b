"""A model that hangs is seen, ended and said; a machine that can start no worker says so."""

from __future__ import annotations

import asyncio
import pathlib
import shlex
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from backends.scripted.script import Rule, Script
from daemon.residency import starting
from daemon.residency.liveness import WorkerLimits
from daemon.residency.spawning import WORKER_COMMAND
from tests.daemon.api.rig import SCRIPT, Rig, api_rig, until

# Stalled is a fifth of it.
WATCHFUL = WorkerLimits(probe_seconds=0.05, stuck_seconds=3.0)
HANGS = Rule(prompt="hang", pieces=("half ",) * 3, fault="hang", fault_after=1)


@pytest.fixture
async def rig(tmp_path: pathlib.Path) -> AsyncIterator[Rig]:
    async with api_rig(tmp_path, worker_limits=WATCHFUL) as rig:
        script = msgspec.structs.replace(SCRIPT, rules=(HANGS, *SCRIPT.rules))
        await rig.add_model("one", script=script)
        yield rig


def body(prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": "one", "messages": [{"role": "user", "content": prompt}], **more}


async def serving(rig: Rig) -> list[str]:
    models = (await rig.client.get("/api/ps")).json()["models"]
    return [model["serving"] for model in models]


async def becomes(rig: Rig, state: str) -> None:
    async with asyncio.timeout(10):
        while await serving(rig) != [state]:  # noqa: ASYNC110  nothing announces it
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/api/chat", '{"error":"model runner has unexpectedly stopped'),
        ("/v1/chat/completions", '"message":"model runner has unexpectedly stopped'),
        ("/v1/messages", '"message":"model runner has unexpectedly stopped'),
    ],
)
async def test_a_hang_is_seen_ended_and_said_and_the_next_one_works(
    rig: Rig, path: str, error: str, stream: bool
) -> None:
    assert (await rig.post(path, **body("count", max_tokens=9))).status_code == 200
    assert await serving(rig) == ["idle"]
    asked = asyncio.create_task(rig.post(path, **body("hang", max_tokens=9, stream=stream)))
    await becomes(rig, "stalled")
    assert 'hearth_model_stalled{model="one:latest"} 1.0' in (await rig.client.get("/metrics")).text
    answer = await asked
    # Ollama's own default is to stream.
    assert answer.status_code == (200 if stream else 500)
    assert ("half" in answer.text) == stream
    assert error in answer.text and "no progress for 3 seconds" in answer.text
    again = await rig.post(path, **body("count", max_tokens=99, stream=False))
    assert again.status_code == 200 and "one two three" in again.text
    assert await serving(rig) == ["idle"]
    found = (await rig.client.get("/metrics")).text
    assert 'hearth_worker_deaths_total{model="one:latest"} 1.0' in found
    assert 'hearth_model_stalled{model="one:latest"} 0.0' in found


async def test_one_that_works_is_busy(rig: Rig) -> None:
    asked = asyncio.create_task(rig.post("/api/chat", **body("slow")))
    await becomes(rig, "busy")
    asked.cancel()
    await becomes(rig, "idle")


async def test_a_slow_first_id_is_no_hang(tmp_path: pathlib.Path) -> None:
    """The engine steps: it waits, in its way, and that is a sign."""
    async with api_rig(tmp_path, worker_limits=WATCHFUL) as rig:
        rule = Rule(pieces=("late",), prefill_seconds=4.0)
        await rig.add_model("one", script=Script(otherwise=rule))
        answer = await rig.post("/api/chat", **body("x", stream=False))
        assert answer.json()["message"]["content"] == "late"


async def test_readiness_says_why_no_worker_starts(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "RETRY_SECONDS", 0.0)
    program = tmp_path / "worker"
    async with api_rig(tmp_path, worker_command=(str(program),)) as rig:
        await rig.add_model("one")
        rig.services.readiness.is_ready = True
        failed = await rig.post("/api/chat", **body("count"))
        assert failed.status_code == 500
        answer = await rig.client.get("/readyz")
        assert answer.status_code == 503
        reason = "the model runner cannot be started: No such file or directory"
        assert answer.json() == {"status": "not ready", "reason": reason}
        assert (await rig.client.get("/healthz")).status_code == 200
        program.write_text(f'#!/bin/sh\nexec {shlex.join(WORKER_COMMAND)} "$@"\n')
        program.chmod(0o755)
        # Asking is what makes it try again.
        async with asyncio.timeout(30):
            while (await rig.client.get("/readyz")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await rig.client.get("/readyz")).json() == {"status": "ready"}
        assert (await rig.post("/api/chat", **body("count"))).status_code == 200


async def test_a_machine_that_was_never_asked_finds_out(tmp_path: pathlib.Path) -> None:
    async with api_rig(tmp_path, worker_command=("/nowhere/to/be/found",)) as rig:
        rig.services.readiness.is_ready = True
        assert (await rig.client.get("/readyz")).status_code == 200
        await until(lambda: rig.services.residency.starter.problem)
        assert (await rig.client.get("/readyz")).status_code == 503
