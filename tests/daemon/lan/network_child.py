"""What runs inside a network namespace: `announce HOME HOST NAME`, `discover SECONDS`, `watch`, `lie`."""

from __future__ import annotations

import asyncio
import json
import logging
import pathlib
import signal
import sys

import msgspec
import uvloop
from zeroconf import ServiceInfo, ServiceStateChange
from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

from daemon.config import Config
from daemon.lan.announce import SERVICE, WEB_SERVICE, Announcer, Facts
from daemon.lan.browse import discover

HOSTILE = {"txtvers": "1", "v": "\x1b[2J\x1b]0;owned\x07", "be": "b" * 200, "x\x00y": "\u202eabc"}


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    return stop


async def announce(home: str, host: str, name: str) -> None:
    folder = pathlib.Path(home)
    config = Config(
        home=folder, models=folder, artifacts=folder, host=host, name=name, open_lan=True
    )
    stop = stop_signal()
    announcer = Announcer(
        config, 11434, Facts(backend="ort-cpu", models=3), poll_seconds=0.2, damping_seconds=0.2
    )
    await announcer.start()
    said: tuple[str, ...] = ()
    while not stop.is_set():
        if announcer.addresses != said:
            said = announcer.addresses
            say(name=announcer.name, addresses=said)
        await asyncio.wait({asyncio.ensure_future(stop.wait())}, timeout=0.05)
    await announcer.stop()


async def find(seconds: str) -> None:
    peers = await discover(float(seconds))
    say(peers=msgspec.to_builtins(peers))


async def watch() -> None:
    stop = stop_signal()
    zeroconf = AsyncZeroconf()

    def changed(*, name: str, service_type: str, state_change: ServiceStateChange, **_: object):
        say(change=state_change.name, name=name, type=service_type)

    browser = AsyncServiceBrowser(zeroconf.zeroconf, [SERVICE, WEB_SERVICE], handlers=[changed])
    say(change="watching")
    await stop.wait()
    await browser.async_cancel()
    await zeroconf.async_close()


async def lie() -> None:
    """Another machine with bad manners."""
    stop = stop_signal()
    zeroconf = AsyncZeroconf()
    await zeroconf.zeroconf.async_wait_for_start()
    for number, name in enumerate(("\x1b[31mEscape\x07", "Evil\u202e"), 1):
        info = ServiceInfo(
            SERVICE, f"{number}.{SERVICE}", port=number, properties=dict(HOSTILE),
            server=f"evil{number}.local.", parsed_addresses=["10.77.0.1", "127.0.0.1"],
        )  # fmt: skip
        # The library refuses to make such names; others need not be so kind.
        info.name = f"{name}.{SERVICE}"
        info.key = info.name.lower()
        zeroconf.zeroconf.registry.async_add(info)
    say(lying=True)
    await stop.wait()
    await zeroconf.async_close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    actions = {"announce": announce, "discover": find, "watch": watch, "lie": lie}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(actions[sys.argv[1]](*sys.argv[2:]))
