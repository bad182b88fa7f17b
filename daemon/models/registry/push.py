"""Pushing a model: every status of contract.md §6.5. What the registry has is not sent again."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from daemon.errors import Invalid, NotFound
from daemon.models.create_request import CreateStatus
from daemon.models.manifest import Layer, decode_manifest, parse_digest
from daemon.models.name import ModelName, parse_name
from daemon.models.registry.access import RegistryAccess
from daemon.models.registry.client import RegistryClient
from daemon.models.registry.incoming import blobs_of
from daemon.models.registry.sharing import Progress, SharedWorks
from daemon.models.registry.upload import BlobUpload, Session
from daemon.models.store import Store

_MAX_SESSIONS = 64


class Pusher:
    """Every push of this daemon. Sessions that were cut off are remembered while it runs."""

    def __init__(self, store: Store, access: RegistryAccess) -> None:
        self._store = store
        self._access = access
        self._shared = SharedWorks()
        self._sessions: dict[tuple[str, str], Session] = {}

    def push(self, name: ModelName, *, insecure: bool = False) -> AsyncGenerator[CreateStatus]:
        """The stream of statuses; closed by its last reader, the push stops and can be resumed.

        Raises NotFound, Forbidden, Internal.
        """
        return self._shared.follow(
            (name.full.casefold(), insecure), lambda progress: self._push(name, insecure, progress)
        )

    async def close(self) -> None:
        await self._shared.close()

    async def _push(self, name: ModelName, insecure: bool, progress: Progress) -> None:
        progress.say("retrieving manifest")
        try:
            data = self._store.manifest_bytes(name)
        except NotFound:
            progress.say("couldn't retrieve manifest")
            raise
        manifest = decode_manifest(data)
        with self._store.pinned(manifest.digests):
            async with await self._access.client(name, insecure=insecure) as client:
                for layer in blobs_of(manifest):
                    await self._send(client, name, layer, progress)
                progress.say("pushing manifest")
                await client.put_manifest(data)
        progress.say("success")

    async def _send(
        self, client: RegistryClient, name: ModelName, layer: Layer, progress: Progress
    ) -> None:
        def show(completed_bytes: int) -> None:
            progress.show("pushing", layer.digest, layer.size, completed_bytes)

        upload = BlobUpload(
            client,
            layer,
            self._store.blobs.path(parse_digest(layer.digest)),
            mount_from=_mount_source(name, layer),
            settings=self._access.download_settings,
            show=show,
        )
        key = (f"{name.host}/{name.namespace}/{name.model}", layer.digest)
        upload.session = self._sessions.pop(key, None)
        try:
            await upload.send()
        except BaseException:
            if upload.session is not None and len(self._sessions) < _MAX_SESSIONS:
                self._sessions[key] = upload.session
            raise


def _mount_source(name: ModelName, layer: Layer) -> str:
    """`<namespace>/<model>` that this layer was taken over from, if that is at the same registry."""
    try:
        source = parse_name(layer.source)
    except Invalid:
        return ""
    is_elsewhere = source.host.casefold() != name.host.casefold()
    return "" if is_elsewhere else f"{source.namespace}/{source.model}"
