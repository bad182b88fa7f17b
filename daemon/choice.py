"""Which backend runs a model here: the machine is probed once, in the background, at the start."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping

from backends.select import Choice, Machine, NoBackend, probe_machine, select_backend
from converters.inspection import Inspection
from daemon.avoidance import Avoidance
from daemon.diagnosis import announced_backend
from daemon.errors import LoadFailed
from daemon.models.jobs import Conversions
from daemon.models.resolved import ResolvedModel

log = logging.getLogger(__name__)
_NONE: Mapping[str, str] = {}


async def _probed(probe: Callable[[], Coroutine[None, None, Machine]]) -> Machine:
    """Says at once, and loudly, what hardware will lie idle."""
    machine = await probe()
    for alarm in machine.alarms():
        log.warning("%s", alarm)
    return machine


class BackendChoice:
    """`wanted` is the configuration's word, as `select_backend` takes it."""

    def __init__(
        self,
        conversions: Conversions,
        wanted: str,
        probe: Callable[[], Coroutine[None, None, Machine]] = probe_machine,
        avoidance: Avoidance | None = None,
    ) -> None:
        self._conversions = conversions
        self._wanted = wanted
        self._machine = asyncio.create_task(_probed(probe))
        self._avoidance = avoidance or Avoidance()

    async def for_model(self, model: ResolvedModel) -> Choice:
        """Raises LoadFailed with every reason when nothing here can run the model."""
        digest = model.require_weights().digest
        inspection = await self._conversions.inspect(digest)
        choice = await self._choose(inspection, self._avoidance.reasons(digest))
        log.info("%s: %s", model.name.short, choice.reason)
        return choice

    def remember_failure(self, source: str, target: str, reason: str) -> None:
        """A device could not hold these weights or computed wrong numbers: passed over a while."""
        self._avoidance.remember(source, target, reason)

    def gave_back(self, target: str) -> None:
        """A worker that held memory of a device has ended."""
        self._avoidance.gave_back(target)

    async def target_for(self, inspection: Inspection) -> str:
        """What to convert these weights to. Raises LoadFailed."""
        return (await self._choose(inspection)).target

    async def _choose(self, inspection: Inspection, failures: Mapping[str, str] = _NONE) -> Choice:
        machine = await asyncio.shield(self._machine)
        try:
            return select_backend(machine, {**inspection.refusals, **failures}, self._wanted)
        except NoBackend as error:
            raise LoadFailed(str(error)) from error

    async def announced(self) -> str:
        """The word for what runs most models here; empty when nothing does."""
        return announced_backend(await self.machine(), self._wanted)

    async def machine(self) -> Machine:
        return await asyncio.shield(self._machine)

    async def close(self) -> None:
        """The probing children end with their task."""
        self._machine.cancel()
        await asyncio.gather(self._machine, return_exceptions=True)
