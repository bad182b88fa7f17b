"""Pulling a model: every status of contract.md §6.4, and what Hearth does between them.

The header of the weights comes first, so that a model which cannot run here, or has no room here,
is refused before the rest is fetched. The manifest is written last, after every digest was verified;
interrupted at any point, no name is changed and nothing that arrived is fetched again.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable

from converters.inspection import Inspection
from daemon.errors import DaemonError, Invalid, NoSpace, NotYet
from daemon.models import manifest as media
from daemon.models.create import conversion_status, unconverted_status
from daemon.models.create_adapter import convert_adapter
from daemon.models.create_request import CreateStatus
from daemon.models.create_vision import convert_vision
from daemon.models.jobs import Conversions
from daemon.models.manifest import Layer, Manifest, parse_digest
from daemon.models.name import ModelName
from daemon.models.registry.access import RegistryAccess
from daemon.models.registry.client import RegistryClient
from daemon.models.registry.download import BlobDownload, WrongContent
from daemon.models.registry.flights import Flights
from daemon.models.registry.incoming import blobs_of, check_manifest
from daemon.models.registry.sharing import Progress, SharedWorks
from daemon.models.registry.space import RESERVE_BYTES, disk_of, missing_bytes, plan_space
from daemon.models.store import Store

log = logging.getLogger(__name__)

HEAD_BYTES = 16 << 20
MAX_HEAD_BYTES = 256 << 20
_MAGIC = b"GGUF"
_REMEMBERED = 16

TargetFor = Callable[[Inspection], Awaitable[str]]


class Puller:
    """Every pull of this daemon; callers of one name share one."""

    def __init__(
        self,
        store: Store,
        conversions: Conversions,
        target_for: TargetFor,
        access: RegistryAccess,
        *,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> None:
        """`target_for` names what to convert to here; it raises NotYet with the reasons against."""
        self.store = store
        self.conversions = conversions
        self.target_for = target_for
        self.access = access
        self.reserve_bytes = reserve_bytes
        self.flights = Flights(store, access)
        # By digest, so that a pull that goes on does not look at the same header again.
        self.looked_at: dict[str, Inspection] = {}
        self._shared = SharedWorks()

    def pull(self, name: ModelName, *, insecure: bool = False) -> AsyncGenerator[CreateStatus]:
        """The stream of statuses; closed by its last reader, the pull stops and can be resumed.

        Raises StoreReadOnly, Forbidden, Invalid, NotYet, NoSpace, LoadFailed, Internal.
        """
        return self._shared.follow(
            (name.full.casefold(), insecure),
            lambda progress: _Pull(self, name, insecure, progress).run(),
        )

    async def close(self) -> None:
        await self._shared.close()


class _Pull:
    """One run of it, from the manifest to `success`."""

    def __init__(self, puller: Puller, name: ModelName, insecure: bool, progress: Progress) -> None:
        self._puller = puller
        self._store = puller.store
        self._conversions = puller.conversions
        self._name = name
        self._insecure = insecure
        self._progress = progress

    async def run(self) -> None:
        self._store.require_writable()
        self._progress.say("pulling manifest")
        async with await self._puller.access.client(self._name, insecure=self._insecure) as client:
            data = await client.manifest()
            manifest = check_manifest(data)
            blobs = blobs_of(manifest)
            with self._store.pinned(manifest.digests):
                target, artifact_bytes = await self._look_first(client, manifest)
                obstacle = self._check_space(manifest, blobs, target, artifact_bytes)
                await self._fetch_all(client, blobs)
                await self._check_adapters(manifest, target)
                self._progress.say("writing manifest")
                removed = await self._store.write_manifest_bytes(self._name, data, manifest.digests)
        await self._convert(manifest, target, obstacle)
        if removed:
            self._progress.say("removing unused layers")
        self._progress.say("success")

    # ---- the header first ----

    async def _look_first(self, client: RegistryClient, manifest: Manifest) -> tuple[str, int]:
        """(target, bytes of the artifact to be made); both empty for a model without weights."""
        weights = manifest.of_type(media.MODEL)
        if not weights:
            return "", 0
        layer = weights[0]
        async with self._turn(client, layer) as download:
            if download is None:
                inspection = await self._conversions.inspect(parse_digest(layer.digest))
                return await self._judge(layer, inspection)
            is_new = not download.partial.written_bytes()
            try:
                return await self._judge(layer, await self._looked_at(layer, download))
            except (Invalid, NotYet):
                if is_new:
                    await download.discard()
                raise

    async def _looked_at(self, layer: Layer, download: BlobDownload) -> Inspection:
        known = self._puller.looked_at
        if layer.digest not in known:
            known[layer.digest] = await self._look(download)
            while len(known) > _REMEMBERED:
                del known[next(iter(known))]
        return known[layer.digest]

    async def _look(self, download: BlobDownload) -> Inspection:
        """What the first bytes tell; more of them are fetched until the header is whole."""
        head, size = HEAD_BYTES, download.partial.total_bytes
        while True:
            await download.fetch_head(head)
            problem = Invalid(f"the header of the weights is over {head} bytes")
            if download.partial.read(len(_MAGIC)) != _MAGIC:
                raise Invalid("the registry's model layer is not in GGUF format")
            try:
                inspection = await self._conversions.preview(download.partial.path)
                if inspection.header_bytes <= min(head, size):
                    return inspection
            except Invalid as error:
                problem = error
            if head >= min(size, MAX_HEAD_BYTES):
                raise problem
            head *= 4

    async def _judge(self, layer: Layer, inspection: Inspection) -> tuple[str, int]:
        """Raises NotYet, LoadFailed when nothing here can run these weights."""
        if inspection.kind != "model":
            raise NotYet(f"the registry's model layer is a {inspection.kind}")
        target = await self._puller.target_for(inspection)
        if self._conversions.artifact(parse_digest(layer.digest), target) is not None:
            return target, 0
        return target, inspection.estimates.get(target) or inspection.estimates.get(
            target.partition("-")[0], 0
        )

    async def _check_adapters(self, manifest: Manifest, target: str) -> None:
        """Raises NotYet, Invalid: a model whose adapter cannot be applied gets no name here."""
        for weights in manifest.of_type(media.MODEL)[:1]:
            for adapter in manifest.of_type(media.ADAPTER):
                digests = parse_digest(adapter.digest), parse_digest(weights.digest)
                await self._conversions.check_adapter(*digests, target)

    def _check_space(
        self, manifest: Manifest, blobs: list[Layer], target: str, artifact_bytes: int
    ) -> str:
        """Why the artifact does not fit, empty when it does. Raises NoSpace when the model does not."""
        store = self._store.blobs
        missing = sum(missing_bytes(store.path(parse_digest(b.digest)), b.size) for b in blobs)
        disk = disk_of(store.folder)
        artifacts = disk
        if target:
            digest = parse_digest(manifest.of_type(media.MODEL)[0].digest)
            artifacts = disk_of(self._conversions.artifact_folder(digest, target))
        return plan_space(
            blob_bytes=missing,
            blobs=disk,
            artifact_bytes=artifact_bytes,
            artifacts=artifacts,
            reserve_bytes=self._puller.reserve_bytes,
        )

    # ---- blobs ----

    async def _fetch_all(self, client: RegistryClient, blobs: list[Layer]) -> None:
        for layer in blobs:
            self._say_quiet()
            async with self._turn(client, layer) as download:
                if download is not None:
                    await download.fetch_rest()
                    await self._finish(layer, download)  # its digest is nearly done by now
                else:
                    self._store.blobs.touch(parse_digest(layer.digest))
        self._progress.say("verifying sha256 digest")
        for layer in blobs:
            async with self._turn(client, layer) as download:
                if download is not None:  # somebody has removed it meanwhile, or a mirror lied
                    await download.fetch_rest()
                    await download.verify_and_finish()

    async def _finish(self, layer: Layer, download: BlobDownload) -> None:
        """What a mirror falsified is gone then, and fetched once more without that mirror."""
        try:
            await download.verify_and_finish()
        except WrongContent:
            if not self._puller.access.mirrors.distrust(layer.digest):
                raise

    def _say_quiet(self) -> None:
        seconds = self._puller.access.throttle.quiet_seconds()
        if seconds > 0:
            self._progress.say(f"quiet hours: fetching goes on in {seconds / 60:.0f} minutes")

    def _turn(
        self, client: RegistryClient, layer: Layer
    ) -> contextlib.AbstractAsyncContextManager[BlobDownload | None]:
        def show(completed_bytes: int) -> None:
            self._progress.show("pulling", layer.digest, layer.size, completed_bytes)

        return self._puller.flights.turn(client, layer, show)

    # ---- conversion ----

    async def _convert(self, manifest: Manifest, target: str, obstacle: str) -> None:
        """The model is on the shelf by now: a lack of room for its artifact is no failure."""
        if not target:
            return
        if obstacle:
            self._say_unconverted(obstacle)
            return
        digest = parse_digest(manifest.of_type(media.MODEL)[0].digest)
        try:
            async with contextlib.aclosing(
                self._conversions.ensure_artifact(digest, target)
            ) as steps:
                async for step in steps:
                    self._tell(conversion_status(target, step))
            adapting = convert_adapter(self._conversions, list(manifest.layers), target)
            seeing = convert_vision(self._conversions, manifest.layers, target)
            for making in (adapting, seeing):
                async with contextlib.aclosing(making) as statuses:
                    async for status in statuses:
                        self._tell(status)
        except NoSpace as error:
            self._say_unconverted(error.message)
        except DaemonError as error:
            log.warning("%s was pulled but not converted: %s", self._name.short, error)
            raise

    def _tell(self, line: CreateStatus) -> None:
        self._progress.say(line.status, total=line.total, completed=line.completed)

    def _say_unconverted(self, reason: str) -> None:
        self._progress.say(unconverted_status(reason).status)
