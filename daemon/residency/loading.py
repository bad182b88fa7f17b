"""Starting one worker with one model, and saying well how it went. Keeps no state."""

from __future__ import annotations

import logging

import msgspec

from backends.types import Load, Loaded
from daemon.errors import DaemonError, DeviceFailed, LoadFailed, WorkerDied
from daemon.residency.placement import Placement
from daemon.residency.settings import ResidencySettings
from daemon.residency.starting import WorkerStarter
from daemon.residency.worker_process import WorkerProcess

_LOAD_ID = "load"
_log = logging.getLogger("hearth.residency")


class LoadOrder(msgspec.Struct, frozen=True, kw_only=True):
    """One load: `free_bytes` is what the machine could give when it was decided."""

    name: str
    placement: Placement
    row_length: int
    rows: int
    free_bytes: int
    stall_seconds: float | None
    cache_folder: str = ""
    prefix_cache_bytes: int = 0
    mlx_ranks: int = 1
    mlx_split: str = "auto"

    @property
    def kv_bytes(self) -> int:
        """All rows at full length where the memory is there for it, but never less than one."""
        row_bytes = self.placement.full_row_bytes(self.row_length)
        spare = self.free_bytes - self.placement.weight_bytes
        return max(row_bytes, min(self.rows * row_bytes, spare))


def order_load(
    settings: ResidencySettings, name: str, placement: Placement, row_length: int, free_bytes: int
) -> LoadOrder:
    """As the owner's settings have it."""
    return LoadOrder(
        name=name,
        placement=placement,
        row_length=row_length,
        rows=settings.rows,
        free_bytes=free_bytes,
        stall_seconds=settings.load_timeout_seconds,
        cache_folder=settings.cache_folder,
        prefix_cache_bytes=settings.prefix_cache_bytes,
        mlx_ranks=settings.mlx_ranks,
        mlx_split=settings.mlx_split,
    )


async def load_worker(order: LoadOrder, starter: WorkerStarter) -> tuple[WorkerProcess, Loaded]:
    """A worker that has the model in memory. Raises LoadFailed, and leaves no process then."""
    worker: WorkerProcess | None = None
    try:
        worker = await starter.spawn(order.name)
        loaded = await worker.load(_load(order), stall_seconds=order.stall_seconds or 0)
    except BaseException as error:
        if worker is not None:
            await worker.stop()
        if isinstance(error, LoadFailed | WorkerDied):
            raise explained(error, order) from error
        raise
    return worker, loaded


def _load(order: LoadOrder) -> Load:
    placement = order.placement
    return Load(
        request_id=_LOAD_ID,
        backend=placement.backend,
        artifact=placement.artifact,
        device=placement.device,
        adapters=placement.adapters,
        projector=placement.projector,
        rows=order.rows,
        context_length=order.row_length,
        kv_bytes=order.kv_bytes,
        precise=placement.precise,
        cache_folder=order.cache_folder,
        prefix_cache_bytes=order.prefix_cache_bytes,
        ranks=order.mlx_ranks if placement.backend == "mlx" else 1,
        split=order.mlx_split,
    )


def log_loaded(order: LoadOrder, loaded: Loaded) -> None:
    estimate = order.placement.needed_bytes(order.row_length)
    numbers = f", computing in {loaded.numbers}" if loaded.numbers else ""
    _log.info(
        "loaded %s on %s%s in %.2f s: %d rows of %d, %d MiB resident (estimated %d MiB)",
        order.name, loaded.device, numbers, loaded.load_ns / 1e9, loaded.rows,
        order.row_length, loaded.resident_bytes >> 20, estimate >> 20,
    )  # fmt: skip


def explained(error: DaemonError, order: LoadOrder) -> LoadFailed:
    """Which model, why, and what it needs beside what there is.

    A worker that dies as it loads onto a device with memory of its own is that device's fault: its
    driver and libraries are in the same process.
    """
    is_lost = isinstance(error, WorkerDied) and order.placement.device_bytes > 0
    if isinstance(error, DeviceFailed) or is_lost:
        return DeviceFailed(f"model '{order.name}' could not be loaded: {error.message}")
    needed = order.placement.needed_bytes(order.row_length)
    return LoadFailed(
        f"model '{order.name}' could not be loaded: {error.message} "
        f"(needs about {in_gib(needed)}, {in_gib(order.free_bytes)} free)"
    )


def too_large(name: str, needed_bytes: int, free_bytes: int, placement: Placement) -> LoadFailed:
    """A model that fits in no way. Test harnesses know the five words in the middle."""
    wanted = placement.in_memory
    disk = f"; on the disk its artifact has no room ({wanted.shortage})" if wanted else ""
    return LoadFailed(
        f"model requires more system memory ({in_gib(needed_bytes)}) than is available "
        f"({in_gib(free_bytes)}): '{name}'{disk}"
    )


def too_large_for_device(placement: Placement, needed_bytes: int) -> DeviceFailed:
    return DeviceFailed(
        f"the model needs {in_gib(needed_bytes)} on {placement.device}, which has "
        f"{in_gib(placement.device_bytes)}"
    )


def in_gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
