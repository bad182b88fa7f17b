"""Models that exist by name only, and a placer that knows where the stand-in finds them."""

from __future__ import annotations

import asyncio

from daemon.errors import NotFound
from daemon.models.manifest import ImageConfig, Layer, Manifest
from daemon.models.name import parse_name
from daemon.models.resolved import ResolvedModel
from daemon.residency.placement import Placement


def model(name: str, digest: str = "") -> ResolvedModel:
    return ResolvedModel(
        name=parse_name(name),
        digest=digest or f"digest of {name}",
        modified_seconds=0.0,
        manifest=Manifest(config=Layer(media_type="", digest="", size=0)),
        config=ImageConfig(),
    )


class Shelf:
    """A placer. `folders` maps a model's name (without tag) to its artifact; default: its own."""

    def __init__(self, **folders: str) -> None:
        self.folders = folders
        self.sizes: dict[str, int] = {}
        self.original_context_length = 0
        self.max_context_length = 32768
        self.avoided: list[tuple[str, str, str]] = []
        self.device_bytes = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def avoid(self, model: ResolvedModel, placement: Placement, reason: str) -> None:
        self.avoided.append((model.name.model, placement.device, reason))
        self.folders.pop(model.name.model, None)

    async def place(self, model: ResolvedModel) -> Placement:
        await self.gate.wait()
        name = model.name.model
        if name == "missing":
            raise NotFound("model 'missing' not found")
        is_on_device = name in self.folders and self.device_bytes > 0
        return Placement(
            backend="none",
            device="cuda" if is_on_device else "cpu",
            device_bytes=self.device_bytes if is_on_device else 0,
            artifact=self.folders.get(name, f"/{name}/1000"),
            weight_bytes=self.sizes.get(name, 100),
            kv_bytes_per_token=1,
            max_context_length=self.max_context_length,
            original_context_length=self.original_context_length,
        )

    async def prepare(self, placement: Placement) -> Placement:
        return placement

    async def discard(self, placement: Placement) -> None:
        pass
