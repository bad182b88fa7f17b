"""Models in and out over the network, as the other rooms see it.

What speaks HTTP and signs requests is imported at the first pull or push, not at the start: most
days the daemon does neither, and it would be a third of its memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from daemon.config import Config
from daemon.models.create import ChooseTarget
from daemon.models.create_request import CreateStatus
from daemon.models.jobs import Conversions
from daemon.models.name import ModelName
from daemon.models.store import Store

if TYPE_CHECKING:
    from daemon.models.registry.service import RegistryService

Statuses = AsyncGenerator[CreateStatus]


class Transfers:
    def __init__(
        self,
        config: Config,
        store: Store,
        conversions: Conversions,
        choose_target: ChooseTarget,
        *,
        version: str,
    ) -> None:
        """`choose_target` as for `Creator`; `version` is this daemon's own."""
        self._rooms = (config, store, conversions, choose_target, version)
        self._service: RegistryService | None = None

    async def _registry(self) -> RegistryService:
        if self._service is not None:
            return self._service
        module = await asyncio.to_thread(importlib.import_module, "daemon.models.registry.service")
        service: RegistryService = self._service or module.RegistryService(*self._rooms)
        self._service = service
        return service

    async def pull(self, name: ModelName, *, insecure: bool = False) -> Statuses:
        """Statuses of contract.md §6.4; closing the last reader of one pull stops it, resumably."""
        service = await self._registry()
        async with contextlib.aclosing(service.puller.pull(name, insecure=insecure)) as lines:
            async for line in lines:
                yield line

    async def push(self, name: ModelName, *, insecure: bool = False) -> Statuses:
        """Statuses of contract.md §6.5; closing it stops the push."""
        service = await self._registry()
        async with contextlib.aclosing(service.pusher.push(name, insecure=insecure)) as lines:
            async for line in lines:
                yield line

    @property
    def pulled_bytes(self) -> int:
        """Of blobs, since the daemon started; resumed pulls count what they still fetched."""
        return self._service.pulled_bytes if self._service else 0

    async def close(self) -> None:
        """Stops every pull and push; what arrived stays for the next one."""
        if self._service is not None:
            await self._service.puller.close()
            await self._service.pusher.close()
