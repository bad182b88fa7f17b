"""Puller and pusher, put together: the one module that loads the HTTP client and the key's library."""

from __future__ import annotations

import functools

from daemon.config import Config
from daemon.models.create import ChooseTarget, required_target
from daemon.models.jobs import Conversions
from daemon.models.registry.access import AccessSettings, RegistryAccess
from daemon.models.registry.pull import Puller
from daemon.models.registry.push import Pusher
from daemon.models.store import Store


class RegistryService:
    def __init__(
        self,
        config: Config,
        store: Store,
        conversions: Conversions,
        choose_target: ChooseTarget,
        version: str,
    ) -> None:
        settings = AccessSettings(
            version=version,
            allowed_hosts=config.registries,
            bytes_per_second=config.pull_bytes_per_second,
            quiet_hours=config.pull_quiet_hours,
            mirrors=config.mirrors,
        )
        access = RegistryAccess(config.home, settings)
        target_for = functools.partial(required_target, choose_target)
        self.puller = Puller(store, conversions, target_for, access)
        self.pusher = Pusher(store, access)
        self._throttle = access.throttle

    @property
    def pulled_bytes(self) -> int:
        return self._throttle.spent_bytes
