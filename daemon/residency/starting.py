"""Starting workers, and what stands against it: the honest part of `/readyz` and of the watchdog."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

from daemon.errors import LoadFailed
from daemon.residency.liveness import WorkerLimits
from daemon.residency.worker_process import WorkerProcess

RETRY_SECONDS = 10.0


class WorkerStarter:
    """Owned by the event loop; ends with `close`."""

    def __init__(self, command: Sequence[str], limits: WorkerLimits) -> None:
        self._command = command
        self._limits = limits
        self._failure = ""
        self._is_proven = False
        self._tried_at = -RETRY_SECONDS
        self._trial: asyncio.Task[None] | None = None
        self._ended: list[WorkerProcess] = []

    async def spawn(self, name: str) -> WorkerProcess:
        """As `WorkerProcess.spawn`, remembering whether it went well. Raises LoadFailed."""
        self._tried_at = time.monotonic()
        try:
            worker = await WorkerProcess.spawn(name, command=self._command, limits=self._limits)
        except LoadFailed as error:
            self._failure, self._is_proven = error.message, False
            raise
        self._failure, self._is_proven = "", True
        return worker

    def forget(self, worker: WorkerProcess) -> None:
        """It is gone, or was given up; then it is looked after until it is gone."""
        if worker.is_lost:
            self._ended.append(worker)

    @property
    def lost(self) -> str:
        """Which processes live on though they were killed; empty as it should be."""
        self._ended = [worker for worker in self._ended if worker.is_lost]
        names = (f"{worker.name} (process {worker.pid})" for worker in self._ended)
        return ", ".join(names)

    @property
    def problem(self) -> str:
        """Why no worker can be started, as far as is known; empty when nothing stands against it."""
        return self._failure

    def prove(self) -> None:
        """Starts one without a model unless the last start went well. Never blocks."""
        is_due = time.monotonic() - self._tried_at >= RETRY_SECONDS
        is_idle = self._trial is None or self._trial.done()
        if not self._is_proven and is_due and is_idle:
            self._trial = asyncio.create_task(self._try())

    async def _try(self) -> None:
        with contextlib.suppress(LoadFailed):
            worker = await self.spawn("trial")
            await worker.stop()

    async def close(self) -> None:
        """Ends a trial under way; may be called again."""
        if self._trial is not None:
            self._trial.cancel()
            await asyncio.gather(self._trial, return_exceptions=True)
