"""Everything here runs on the loop that the daemon runs on: its child processes are its own code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import psutil
import pytest
import uvloop

from daemon.residency.residency import Residency
from daemon.residency.settings import ResidencySettings
from tests.daemon.residency.processes import QUICK, STANDIN
from tests.daemon.residency.residencies import FREE, Make
from tests.daemon.residency.shelf import Shelf


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[Residency] = []
    # Another suite's daemon may be running beside us.
    before = set(psutil.Process().children(recursive=True))

    def create(shelf: Shelf | None = None, free: int = FREE, **settings: Any) -> Residency:
        residency = Residency(
            ResidencySettings(**settings),
            shelf or Shelf(),
            command=STANDIN,
            worker_limits=QUICK,
            measure_free=lambda held: free - held,
        )
        made.append(residency)
        return residency

    yield create
    for residency in made:
        await residency.close()
    assert set(psutil.Process().children(recursive=True)) - before == set()
