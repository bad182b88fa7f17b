"""A shelf with a puller and a pusher on it, set to lose patience quickly."""

from __future__ import annotations

import pathlib
from typing import Any

import msgspec

from daemon.models.name import parse_name
from daemon.models.registry.access import AccessSettings, RegistryAccess
from daemon.models.registry.download import DownloadSettings
from daemon.models.registry.pull import Puller
from daemon.models.registry.push import Pusher
from tests.daemon.models.shelf import STANDIN, Shelf
from tests.registry.server import Registry

QUICK = DownloadSettings(
    stall_seconds=0.3, first_pause_seconds=0.01, longest_pause_seconds=0.05, tries=4
)
SETTINGS = AccessSettings(version="1.2.3", download=QUICK)
CONFIG: dict[str, object] = {"model_format": "gguf", "model_family": "llama"}


class PullingShelf(Shelf):
    def __init__(
        self,
        folder: pathlib.Path,
        *,
        command: tuple[str, ...] = STANDIN,
        reserve_bytes: int = 0,
        **settings: Any,
    ) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__(folder, command)
        self.home.mkdir(exist_ok=True)
        access = RegistryAccess(self.home, msgspec.structs.replace(SETTINGS, **settings))
        self.puller = Puller(
            self.store,
            self.conversions,
            self.creator.target_for,
            access,
            reserve_bytes=reserve_bytes,
        )
        self.pusher = Pusher(self.store, access)

    async def pull(self, registry: Registry, model: str = "m") -> list[dict[str, Any]]:
        name = parse_name(f"{registry.host}/library/{model}")
        lines = self.puller.pull(name, insecure=True)
        return [msgspec.to_builtins(line) async for line in lines]

    async def push(self, host: str, model: str = "m") -> list[dict[str, Any]]:
        lines = self.pusher.push(parse_name(f"{host}/library/{model}"), insecure=True)
        return [msgspec.to_builtins(line) async for line in lines]

    def leftovers(self) -> list[str]:
        """Whatever lies in `blobs/` and is no blob."""
        return [path.name for path, digest in self.store.blobs.files() if digest is None]


def texts(lines: list[dict[str, Any]]) -> list[str]:
    """The statuses without repetitions."""
    return list(dict.fromkeys(line["status"] for line in lines))
