"""The whole API on a real socket with real worker processes, on models that follow a script."""

from __future__ import annotations

import asyncio
import hashlib
import pathlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
import msgspec

from backends.scripted.make import write_artifact
from backends.scripted.script import Rule, Script
from backends.select import Choice
from converters.artifact import Artifact
from converters.inspection import Inspection
from converters.vision_artifact import VISION_FILE, VisionArtifact
from daemon.api.application import create_api
from daemon.api.services import Services
from daemon.lan.key_ring import KeyRing
from daemon.models import manifest as media
from daemon.models.artifact_collection import ArtifactCollector
from daemon.models.create import Creator
from daemon.models.foreign.shelf import ForeignShelf
from daemon.models.jobs import Conversions, JobView
from daemon.models.manifest import ImageConfig, Layer, Manifest, StoredMessage
from daemon.models.marker import claim
from daemon.models.name import parse_name
from daemon.models.resolved import ResolvedModel
from daemon.models.store import Store
from daemon.models.transfers import Transfers
from daemon.residency.liveness import WorkerLimits
from daemon.residency.placement import ArtifactPlacer
from daemon.residency.residency import Residency
from daemon.residency.settings import ResidencySettings
from daemon.residency.spawning import WORKER_COMMAND
from tests.daemon.api.serving import loopback_config, served

SCRIPT = Script(
    rules=(
        Rule(prompt="count", pieces=("one ", "two ", "three")),
        Rule(prompt="slow", pieces=("tick ",) * 400, delay_seconds=0.02),
        Rule(prompt="break", pieces=("half ",), fault="fail", fault_after=1),
        Rule(prompt="crash", pieces=("half ",) * 3, delay_seconds=0.05, fault="die", fault_after=2),
    ),
    otherwise=Rule(pieces=("Hello ", "wörld", ".")),
    context_length=512,
)


class InspectedModels:
    """In the place of `Conversions`: what a look at each blob told, and artifacts made before."""

    def __init__(self, artifacts: pathlib.Path) -> None:
        self._artifacts = artifacts
        self._inspections: dict[str, Inspection] = {}

        self.outcomes: dict[str, int] = {}

    def add(self, inspection: Inspection, script: Script) -> None:
        self._inspections[inspection.digest] = inspection
        folder = self.artifact_folder(inspection.digest, "scripted")
        write_artifact(folder, script, chat_template=inspection.chat_template)

    def add_eyes(self, inspection: Inspection, eyes: VisionArtifact) -> None:
        self._inspections[inspection.digest] = inspection
        folder = self.vision_folder(inspection.digest, "scripted")
        folder.mkdir(parents=True)
        (folder / VISION_FILE).write_bytes(msgspec.json.encode(eyes))

    def known_inspection(self, blob_digest: str) -> Inspection | None:
        return self._inspections.get(blob_digest)

    async def arrays(self, blob_digest: str) -> dict[str, msgspec.Raw]:
        return {"tokenizer.ggml.tokens": msgspec.Raw(b'["a","b"]')} if blob_digest else {}

    def jobs(self) -> list[JobView]:
        return []

    def artifact(self, source: str, target: str) -> Artifact | None:
        return None

    def vision(self, source: str, target: str) -> VisionArtifact | None:
        return None

    def vision_folder(self, source: str, target: str) -> pathlib.Path:
        return self._artifacts / source / f"vision-{target}-f1"

    async def ensure_vision(self, source: str, target: str) -> AsyncIterator[object]:
        for _ in ():
            yield source, target

    async def inspect(self, blob_digest: str) -> Inspection:
        return self._inspections[blob_digest]

    async def ensure_artifact(self, blob_digest: str, target: str) -> AsyncIterator[object]:
        for _ in ():
            yield blob_digest, target

    def artifact_folder(self, blob_digest: str, target: str) -> pathlib.Path:
        return self._artifacts / blob_digest / f"{target}-f1"


class Rig:
    def __init__(self, services: Services, models: InspectedModels, client: httpx.AsyncClient):
        self.services = services
        self.models = models
        self.client = client

    @property
    def base(self) -> str:
        return str(self.client.base_url).rstrip("/")

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.client.post(path, json=body)

    async def add_model(
        self,
        name: str,
        *,
        script: Script = SCRIPT,
        system: str = "",
        parameters: dict[str, Any] | None = None,
        messages: tuple[StoredMessage, ...] = (),
        config: ImageConfig | None = None,
        eyes: VisionArtifact | None = None,
        blindness: str = "",
        **inspection: Any,
    ) -> None:
        """A model of its own weights, whose inspection says what is given. `eyes`: of its projector."""
        store = self.services.store
        weights = await _put(store, f"GGUF {name}".encode(), media.MODEL)
        layers = [weights]
        texts = {
            media.SYSTEM: system.encode(),
            media.PARAMETERS: media.encode_parameters(parameters) if parameters else b"",
            media.MESSAGES: media.encode_messages(messages) if messages else b"",
        }
        layers += [await _put(store, data, kind) for kind, data in texts.items() if data]
        if eyes:
            layers.append(await self._add_eyes(name, eyes, blindness))
        data = media.encode_config(config or ImageConfig(model_format="gguf"))
        config_layer = await _put(store, data, media.CONFIG_TYPE)
        await self._write(name, Manifest(config=config_layer, layers=tuple(layers)))
        digest = weights.digest.removeprefix("sha256:")
        facts = {"architecture": "scripted", "context_length": 512} | inspection
        self.models.add(Inspection(digest=digest, size=weights.size, **facts), script)

    async def _add_eyes(self, name: str, eyes: VisionArtifact, blindness: str) -> Layer:
        layer = await _put(self.services.store, f"GGUF eyes of {name}".encode(), media.PROJECTOR)
        digest = layer.digest.removeprefix("sha256:")
        refusals = {"scripted": blindness} if blindness else {}
        seen = Inspection(
            digest=digest,
            size=layer.size,
            kind="projector",
            projector_type=eyes.form.projector,
            vision_refusals=refusals,
        )
        self.models.add_eyes(seen, msgspec.structs.replace(eyes, source=digest))
        return layer

    async def _write(self, name: str, manifest: Manifest) -> None:
        await self.services.store.write_manifest(parse_name(name), manifest)


async def _put(store: Store, data: bytes, media_type: str) -> Layer:
    await store.put_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    return Layer(media_type=media_type, digest=f"sha256:{digest}", size=len(data))


REASON = "asked for by configuration"


async def _scripted_target(_: Inspection) -> str:
    return "scripted"


async def _scripted(_: ResolvedModel) -> Choice:
    return Choice(backend="scripted", target="scripted", device="cpu", reason=REASON)


@asynccontextmanager
async def api_rig(
    home: pathlib.Path,
    *,
    worker_command: Sequence[str] = WORKER_COMMAND,
    worker_limits: WorkerLimits = WorkerLimits(),
    **config_changes: Any,
) -> AsyncIterator[Rig]:
    """Everything but the choice of a backend and the converter is what `hearth serve` runs."""
    config = loopback_config(home, **config_changes)
    models = InspectedModels(config.artifacts)
    store = Store(config.models, claim(config.models, is_foreign=False))
    residency = Residency(
        ResidencySettings.of(config),
        ArtifactPlacer(cast("Conversions", models), _scripted),
        command=worker_command,
        worker_limits=worker_limits,
    )
    conversions = cast("Conversions", models)
    transfers = Transfers(config, store, conversions, _scripted_target, version="1.2.3")
    foreign = ForeignShelf(store, config.home, config.foreign)
    creator = Creator(store, conversions, _scripted_target, transfers.pull, foreign)
    collector = ArtifactCollector(
        store, foreign, conversions, home=config.home, artifacts=config.artifacts
    )
    keys = KeyRing(config.home)
    services = Services(
        config, store, conversions, creator, residency, transfers, foreign, collector, keys
    )
    try:
        async with (
            served(create_api(services), config.host) as base,
            httpx.AsyncClient(base_url=base, timeout=30) as client,
        ):
            yield Rig(services, models, client)
    finally:
        await keys.close()
        await transfers.close()
        await residency.close()


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in answer.text.splitlines()]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  nothing announces it
            await asyncio.sleep(0.01)
