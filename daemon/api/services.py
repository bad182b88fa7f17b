"""What the controllers are given: the daemon's rooms, made by `daemon.app`, and nothing global."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property

from litestar.di import NamedDependency

from backends.select import Machine, probe_machine
from daemon.config import Config
from daemon.lan.key_ring import KeyRing
from daemon.lan.pairing import Pairing
from daemon.metrics.counted import Metrics
from daemon.models.artifact_collection import ArtifactCollector
from daemon.models.create import Creator
from daemon.models.foreign.shelf import ForeignShelf
from daemon.models.jobs import Conversions
from daemon.models.store import Store
from daemon.models.transfers import Transfers
from daemon.residency.residency import Residency


class Readiness:
    """Turned on by `daemon.app` when models can be asked, off again when it stops."""

    def __init__(self) -> None:
        self.is_ready = False


@dataclass(frozen=True)
class Services:
    config: Config
    store: Store
    conversions: Conversions
    creator: Creator
    residency: Residency
    transfers: Transfers
    foreign: ForeignShelf
    collector: ArtifactCollector
    keys: KeyRing
    readiness: Readiness = field(default_factory=Readiness)
    metrics: Metrics = field(default_factory=Metrics)
    machine: Callable[[], Awaitable[Machine]] = probe_machine

    @cached_property
    def pairing(self) -> Pairing:
        """In memory only: nothing to open or to close."""
        return Pairing(self.keys)


# How a handler asks for them, by the parameter name `services`.
Rooms = NamedDependency[Services]
