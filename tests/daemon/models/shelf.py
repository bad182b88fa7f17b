"""A store, its conversions by the stand-in converter, and a creator, in one temporary folder."""

import asyncio
import hashlib
import json
import pathlib
import sys
import time
from collections.abc import AsyncIterator, Callable

from converters.inspection import Inspection
from daemon.errors import LoadFailed
from daemon.models.create import Creator
from daemon.models.create_request import CreateRequest
from daemon.models.jobs import Conversions
from daemon.models.marker import claim
from daemon.models.store import Store

STANDIN = (sys.executable, "-m", "tests.daemon.models.standin_converter")
TARGET = "onnx-cpu"


def gguf(**wanted: object) -> bytes:
    """A file that the stand-in obeys."""
    return b"GGUF" + json.dumps(wanted).encode()


def hex_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def stream(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        await asyncio.sleep(0.01)


class Shelf:
    def __init__(self, folder: pathlib.Path, command: tuple[str, ...] = STANDIN) -> None:
        self.home = folder / "home"
        self.artifacts = folder / "artifacts"
        self.is_busy = False
        self.store = Store(folder / "models", claim(folder / "models", is_foreign=False))
        self.conversions = Conversions(
            home=self.home,
            artifacts=self.artifacts,
            blob_path=self.store.blobs.path,
            is_busy=lambda: self.is_busy,
            converter_command=command,
        )
        self.creator = Creator(self.store, self.conversions, self._target)

    async def _target(self, inspection: Inspection) -> str:
        if "onnx" in inspection.refusals:
            raise LoadFailed(f"nothing here runs it: {inspection.refusals}")
        return TARGET

    async def put(self, data: bytes) -> str:
        return await self.store.put_blob(stream(data))

    async def make(self, name: str, data: bytes, **fields: object) -> list[str]:
        """Creates from uploaded bytes; the statuses."""
        files = {"a.gguf": f"sha256:{await self.put(data)}"}
        return await self.create(model=name, files=files, **fields)

    async def create(self, **fields: object) -> list[str]:
        request = CreateRequest(**fields)  # pyright: ignore[reportArgumentType]
        return [line.status async for line in self.creator.create(request)]

    def runs(self) -> list[tuple[str, int]]:
        """(source, pid) of every converter that was started."""
        file = self.artifacts / "runs"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(source, int(pid)) for source, pid in (line.split() for line in lines)]

    def staging(self) -> list[str]:
        return [path.name for path in self.artifacts.glob("*/*staging*")]
