"""Makes residencies of stand-in workers, and talks to what they lend."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from backends.types import Delta
from daemon.residency.lease import Lease
from daemon.residency.residency import Residency
from tests.daemon.residency.processes import chat

FREE = 100_000
Make = Callable[..., Residency]


async def text_of(lease: Lease, prompt: str, request_id: str = "r") -> str:
    pieces = [piece async for piece in lease.chat(chat(prompt, request_id))]
    return "".join(piece.text for piece in pieces if isinstance(piece, Delta))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110  (what is asked is a text, nothing tells of it)
            await asyncio.sleep(0.01)
