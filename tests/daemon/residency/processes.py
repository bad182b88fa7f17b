"""Short ways to make stand-in workers, and to ask whether a process is still there."""

from __future__ import annotations

import os
import pathlib
import sys

from backends.types import Chat, Load
from daemon.residency.worker_process import WorkerLimits, WorkerProcess

STANDIN = (sys.executable, str(pathlib.Path(__file__).with_name("standin_worker.py")))
QUICK = WorkerLimits(close_seconds=0.3, terminate_seconds=0.3, hello_seconds=10)


async def spawn_standin(*options: str, limits: WorkerLimits = QUICK) -> WorkerProcess:
    return await WorkerProcess.spawn("standin", command=(*STANDIN, *options), limits=limits)


async def loaded_standin(limits: WorkerLimits = QUICK) -> WorkerProcess:
    worker = await spawn_standin(limits=limits)
    await worker.load(load_order("/x/1000"), stall_seconds=10)
    return worker


def load_order(artifact: str) -> Load:
    return Load(request_id="load", backend="none", artifact=artifact)


def chat(prompt: str, request_id: str = "r") -> Chat:
    return Chat(request_id=request_id, prompt=prompt)


def has_process(pid: int) -> bool:
    """False also for one that ended but was not reaped by anybody else: we are its parent."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
