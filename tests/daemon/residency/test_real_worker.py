"""Residency with the real worker process and the scripted backend: text in, text out, deaths."""

from __future__ import annotations

import asyncio
import pathlib
import re
from collections.abc import AsyncIterator

import psutil
import pytest

from backends.scripted.make import write_artifact
from backends.scripted.script import Rule, Script
from backends.types import Chat, Delta, Message, Render
from daemon.errors import LoadFailed, WorkerDied
from daemon.models.resolved import ResolvedModel
from daemon.residency.lease import Lease
from daemon.residency.placement import Placement
from daemon.residency.residency import Residency
from daemon.residency.settings import ResidencySettings
from tests.daemon.residency.shelf import model

RULES = (
    Rule(prompt="die", pieces=("a", "b"), fault="die", fault_after=1),
    Rule(prompt="slowly", pieces=("x",) * 1000, delay_seconds=0.02),
    Rule(prompt="sky", pieces=("The ", "sky ", "is ", "blue."), delay_seconds=0.01),
)


class Scripted:
    """A placer of artifacts that replay scripts."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder

    def avoid(self, model: ResolvedModel, placement: Placement, reason: str) -> None:
        raise AssertionError("there is one device only")

    async def place(self, model: ResolvedModel) -> Placement:
        folder = self._folder / model.name.model
        fault = "fail" if model.name.model == "broken" else ""
        write_artifact(folder, Script(rules=RULES, load_fault=fault))
        return Placement(backend="scripted", artifact=str(folder), max_context_length=4096)

    async def prepare(self, placement: Placement) -> Placement:
        return placement

    async def discard(self, placement: Placement) -> None:
        pass


@pytest.fixture
async def residency(tmp_path: pathlib.Path) -> AsyncIterator[Residency]:
    before = set(psutil.Process().children(recursive=True))
    made = Residency(ResidencySettings(rows=2), Scripted(tmp_path))
    yield made
    await made.close()
    assert set(psutil.Process().children(recursive=True)) - before == set()


def chat(text: str, request_id: str = "r") -> Chat:
    return Chat(request_id=request_id, messages=(Message(role="user", content=text),))


async def text_of(lease: Lease, said: str, request_id: str = "r") -> str:
    pieces = [p async for p in lease.chat(chat(said, request_id)) if isinstance(p, Delta)]
    assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish == "stop" and pieces[-1].usage is not None
    return "".join(piece.text for piece in pieces)


async def test_two_chats_at_once_and_a_rendered_prompt(residency: Residency):
    one, other = [await residency.acquire(model("m")) for _ in range(2)]
    texts = await asyncio.gather(text_of(one, "the sky", "1"), text_of(other, "sky?", "2"))
    assert texts == ["The sky is blue."] * 2
    prompt = await one.render(Render(request_id="p", chat=chat("hello")))
    assert re.search("user: hello", prompt)
    one.release()
    other.release()
    assert repr(residency) == "<Residency m:latest ready users=0 rows=0/2; 0 waiting>"
    assert residency.loaded()[0].size > 1 << 20


async def test_a_closed_stream_frees_the_row_in_the_worker(residency: Residency):
    async with await residency.acquire(model("m")) as lease:
        async with lease.chat(chat("slowly")) as stream:
            async for piece in stream:
                if isinstance(piece, Delta):
                    break
        assert await text_of(lease, "sky", "2") == "The sky is blue."


async def test_a_worker_that_dies_and_the_one_after_it(residency: Residency):
    lease = await residency.acquire(model("m"))
    with pytest.raises(WorkerDied, match="model runner has unexpectedly stopped"):
        await text_of(lease, "die")
    lease.release()
    async with await residency.acquire(model("m")) as lease:
        assert await text_of(lease, "sky") == "The sky is blue."


async def test_a_load_that_fails(residency: Residency):
    with pytest.raises(LoadFailed, match=r"model .broken:latest. .*the script asked for this"):
        await residency.acquire(model("broken"))
    assert repr(residency) == "<Residency empty; 0 waiting>"


async def test_unloading_is_quick(residency: Residency):
    lease = await residency.acquire(model("m"), keep_alive_seconds=0.0)
    assert lease.resident.worker is not None
    ended = lease.resident.worker.wait_ended()
    lease.release()
    await asyncio.wait_for(ended, 4)
