"""One pull, interrupted at random: `python -m tests.bench.interruptions --count 200`.

Kills the daemon (kill -9), drops the registry's sockets, lets the client leave and fills a small
tmpfs; then lets the pull end. Prints what was sent in all against the blob's size, whether the
content is right, and what was left behind. Needs root for the tmpfs; without it, no disk is filled.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import hashlib
import json
import os
import pathlib
import random
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator

import httpx

from tests.e2e.daemon_process import DaemonProcess
from tests.models.random_gguf import make_gguf
from tests.registry.server import Registry

RESERVE_BYTES = 1 << 30  # what a pull leaves free
BYTES_PER_SECOND = 800_000


class RegistryThread:
    """The registry with faults, on a loop of its own."""

    def __init__(self, model: bytes) -> None:
        self.registry = Registry()
        self._model = model
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with self.registry as registry:
            registry.chunk_bytes = 64 << 10
            registry.faults.bytes_per_second = BYTES_PER_SECOND
            registry.add_model("library/m", "latest", [("model", self._model)], {})
            self._ready.set()
            await self._stop.wait()

    def __enter__(self) -> Registry:
        self._thread.start()
        self._ready.wait()
        return self.registry

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


class PullThread(threading.Thread):
    """One try of the pull. `error` is what it ended with, empty when cut off or successful."""

    def __init__(self, daemon: DaemonProcess, host: str) -> None:
        super().__init__()
        self._url = f"{daemon.url}/api/pull"
        self._body = {"model": f"{host}/library/m", "insecure": True}
        self._leaves = threading.Event()
        self.statuses: list[str] = []
        self.went_backwards = False
        self.error = ""
        self.start()

    def run(self) -> None:
        completed = 0
        with (
            contextlib.suppress(httpx.TransportError),
            httpx.stream("POST", self._url, json=self._body, timeout=60, trust_env=False) as answer,
        ):
            for text in answer.iter_lines():
                line = json.loads(text)
                self.error = line.get("error", "")
                self.statuses.append(line.get("status", ""))
                if line.get("total", 0) > 1000 and "digest" in line:
                    self.went_backwards |= line.get("completed", 0) < completed
                    completed = line.get("completed", 0)
                if self._leaves.is_set():
                    return

    def leave(self) -> None:
        self._leaves.set()
        self.join()

    @property
    def is_done(self) -> bool:
        return bool(self.statuses) and self.statuses[-1] == "success"


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, size: int) -> Iterator[bool]:
    """True when `folder` is a tmpfs of its own."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def filled(folder: pathlib.Path) -> Iterator[None]:
    """Nothing more can be written in `folder`."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        space = os.statvfs(folder)
        # Others write at the same time: the last pages are taken one by one.
        with contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_bsize - (256 << 10))
            while True:
                file.seek(0, os.SEEK_END)
                file.write(b"\0" * 4096)
    try:
        yield
    finally:
        ballast.unlink()


class Rounds:
    """Interruptions of one pull until there were `count`, then an undisturbed end."""

    def __init__(
        self, daemon: DaemonProcess, registry: Registry, disk: pathlib.Path | None
    ) -> None:
        self._daemon = daemon
        self._registry = registry
        self._disk = disk
        self.happened: collections.Counter[str] = collections.Counter()
        self.was_backwards = False

    def run(self, count: int) -> None:
        kinds = ["kill", "leave"] + (["full disk"] if self._disk else [])
        while self.happened.total() < count:
            faults = self._registry.faults
            faults.drops = wanted = random.choice((1, 2, 3))
            faults.drop_after_bytes = random.randrange(10_000, 700_000)
            pull = PullThread(self._daemon, self._registry.host)
            time.sleep(random.uniform(0.05, 1.2))
            self._interrupt(random.choice(kinds), pull)
            self.happened["dropped socket"] += wanted - faults.drops
            self.was_backwards |= pull.went_backwards
            if pull.is_done:
                print("the pull ended before there were enough interruptions")
                return

    def _interrupt(self, kind: str, pull: PullThread) -> None:
        self.happened[kind] += 1
        if kind == "kill":
            self._daemon.kill()
            pull.join()
            self._daemon.start()
        elif kind == "leave":
            pull.leave()
        elif self._disk is not None:
            with filled(self._disk):
                pull.join(20)
            if pull.is_alive():
                pull.leave()

    def finish(self) -> PullThread:
        self._registry.faults.drops = 0
        self._registry.faults.bytes_per_second = 0
        pull = PullThread(self._daemon, self._registry.host)
        pull.join()
        return pull


def report(rounds: Rounds, registry: Registry, model: bytes, home: pathlib.Path) -> None:
    digest = hashlib.sha256(model).hexdigest()
    sent = registry.sent_bytes[f"sha256:{digest}"]
    blob = home / "models" / "blobs" / f"sha256-{digest}"
    found = hashlib.sha256(blob.read_bytes()).hexdigest()
    print(f"{rounds.happened.total()} interruptions: {dict(rounds.happened)}")
    print(
        f"blob {len(model)} bytes, sent {sent} bytes: {sent / len(model) - 1:+.2%}, "
        f"{(sent - len(model)) / rounds.happened.total():.0f} bytes an interruption"
    )
    print(f"digest {'right' if found == digest else 'WRONG'}")
    print(f"progress ran backwards: {rounds.was_backwards}")
    left = [path.name for path in blob.parent.iterdir() if not path.name[7:].isalnum()]
    left += [str(path) for path in home.rglob("*.staging-*")]
    print(f"left behind: {left or 'nothing'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        source = make_gguf(
            root / "m.gguf", blocks=8, embedding=1536, heads=12, kv_heads=4, feed_forward=6144
        )
        model = source.read_bytes()
        disk = root / "disk"
        disk.mkdir()
        with (
            small_disk(disk, RESERVE_BYTES + 5 * len(model)) as is_small,
            RegistryThread(model) as registry,
            DaemonProcess(disk / "home") as daemon,
        ):
            rounds = Rounds(daemon, registry, disk if is_small else None)
            rounds.run(arguments.count)
            pull = rounds.finish()
            print(f"the last try ended with {pull.statuses[-1]!r} {pull.error}")
            report(rounds, registry, model, disk / "home")


if __name__ == "__main__":
    main()
