"""What feeds the service manager's watchdog and what does not, over the socket that systemd gives."""

from __future__ import annotations

import asyncio
import os
import pathlib
import socket
import time
from collections.abc import AsyncIterator

import pytest

from daemon.watchdog import feed_watchdog, watchdog_seconds

FED = b"WATCHDOG=1"


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, 0),
        ({"WATCHDOG_USEC": "60000000"}, 60),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 60),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "soon"}, 0),
        ({"WATCHDOG_USEC": "-1"}, 0),
        ({"WATCHDOG_USEC": ""}, 0),
    ],
)
def test_the_limit(environment: dict[str, str], seconds: float) -> None:
    assert watchdog_seconds(environment) == seconds


class Manager:
    """The service manager's end."""

    def __init__(self, path: pathlib.Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self.obstacle = ""

    async def heard(self) -> bytes:
        async with asyncio.timeout(10):
            return await asyncio.get_running_loop().sock_recv(self._socket, 100)

    def drain(self) -> int:
        count = 0
        while True:
            try:
                self._socket.recv(100)
            except BlockingIOError:
                return count
            count += 1

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
async def manager(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Manager]:
    """With a daemon that is to be heard from every 0.2 s."""
    manager = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    feeding = asyncio.create_task(feed_watchdog(0.2, lambda: manager.obstacle))
    yield manager
    feeding.cancel()
    await asyncio.gather(feeding, return_exceptions=True)
    manager.close()


async def test_it_is_fed_while_all_is_well(manager: Manager) -> None:
    assert [await manager.heard() for _ in range(3)] == [FED] * 3


async def test_it_starves_while_there_is_an_obstacle(
    manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    manager.obstacle = "killed workers live on: m (process 7)"
    manager.drain()
    await asyncio.sleep(0.3)
    assert manager.drain() == 0
    told = "the service manager's watchdog is not fed: killed workers live on: m (process 7)"
    assert told in caplog.messages
    manager.obstacle = ""
    assert await manager.heard() == FED


async def test_a_late_turn_of_the_loop_feeds_nothing(
    manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    await manager.heard()
    await asyncio.sleep(0)
    manager.drain()
    time.sleep(0.3)
    async with asyncio.timeout(5):
        while not caplog.messages:  # noqa: ASYNC110  nothing announces it
            await asyncio.sleep(0)
    assert manager.drain() == 0
    assert "the event loop was 0." in caplog.messages[0]
    assert await manager.heard() == FED
