"""The model that `from` names: on our shelf, in another program's folder, or still to be pulled."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Protocol

import msgspec

from daemon.errors import DaemonError, NotFound
from daemon.models.create_draft import Draft
from daemon.models.create_request import CreateRequest, CreateStatus
from daemon.models.foreign.shelf import ForeignShelf
from daemon.models.jobs import Conversions
from daemon.models.manifest import ImageConfig
from daemon.models.name import ModelName, is_cloud_reference, parse_name
from daemon.models.resolved import ResolvedModel
from daemon.models.store import Store
from daemon.models.taking_in import take_in


class Pull(Protocol):
    """`Transfers.pull`."""

    def __call__(
        self, name: ModelName, *, insecure: bool = False
    ) -> AsyncGenerator[CreateStatus]: ...


class CreateSources:
    """`pull` and `foreign` as `Creator` takes them."""

    def __init__(
        self,
        store: Store,
        conversions: Conversions,
        pull: Pull | None,
        foreign: ForeignShelf | None,
    ) -> None:
        self._store = store
        self._conversions = conversions
        self._pull = pull
        self._foreign = foreign

    async def fetch_missing(self, request: CreateRequest) -> AsyncGenerator[CreateStatus]:
        """Takes in or pulls a source that is not here; the line `success` is not theirs to say."""
        asked, name = request.source, parse_name(request.source)
        if is_cloud_reference(asked) or self._store.find(name) is not None:
            return
        if self._foreign is not None:
            await self._foreign.look_for(name)
        if self._foreign is not None and self._foreign.find(name) is not None:
            async with contextlib.aclosing(self._take_in(await self._source(asked))) as steps:
                async for step in steps:
                    yield step
            return
        if self._pull is None:
            return
        async with contextlib.aclosing(self._pull(name, insecure=request.insecure)) as steps:
            async for step in steps:
                if step.status != "success":
                    yield step

    async def _source(self, asked: str) -> ResolvedModel:
        """On our own shelf, else in another program's folder. Raises NotFound."""
        name = parse_name(asked)
        try:
            if self._foreign is not None and self._store.find(name) is None:
                return await self._foreign.identified(self._foreign.resolve(name))
            return self._store.resolve(name)
        except NotFound:
            raise NotFound(f"model '{asked}' not found") from None

    async def _take_in(self, source: ResolvedModel) -> AsyncGenerator[CreateStatus]:
        """Makes another program's files blobs of ours, linked where the filesystem can."""
        assert self._foreign is not None
        for digest in sorted(source.manifest.digests):
            if not self._store.blobs.has(digest):
                path = self._foreign.blob_path(digest)
                async with contextlib.aclosing(take_in(self._store, path)) as steps:
                    async for step in steps:
                        yield step

    async def draft_of(self, asked: str) -> tuple[Draft, dict[str, object]]:
        """All layers of the source, and its parameters."""
        source = await self._source(asked)
        layers = [
            msgspec.structs.replace(layer, source=source.name.short)
            for layer in source.manifest.layers
        ]
        kept = ("renderer", "parser", "requires", "model_format", "capabilities")
        config = ImageConfig(**{field: getattr(source.config, field) for field in kept})
        draft = Draft(config=config, layers=layers)
        with contextlib.suppress(DaemonError):
            draft.inspection = await self._conversions.inspect(source.require_weights().digest)
        if draft.inspection is None:
            draft.config = source.config  # nothing to look at: its own word is the best there is
        return draft, source.parameters
