"""What is in memory, and who may use it. Owns every worker process, all leases' books and timers.

Requests come in by `acquire` and leave by releasing the lease; on every such change
`plan_residency` decides and `_replan` carries it out. Names hold workers by keep-alive timers; a
worker with no hold left is ended, which is the only way memory and devices really come back.
Owned by the event loop; never blocks it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence

import msgspec

from backends.types import Loaded
from daemon.errors import Busy, DaemonError, DeviceFailed, Internal
from daemon.models.resolved import ResolvedModel
from daemon.residency.lease import Lease, NameHold, Resident, Wish
from daemon.residency.liveness import WorkerLimits
from daemon.residency.loaded import LoadedModel, describe_loaded
from daemon.residency.loading import (
    LoadOrder,
    explained,
    load_worker,
    log_loaded,
    order_load,
    too_large,
    too_large_for_device,
)
from daemon.residency.memory import free_bytes
from daemon.residency.moving import device_bytes, place_again
from daemon.residency.placement import Placement, Placer
from daemon.residency.plan import Budget, WaitingView, WorkerKey, plan_residency
from daemon.residency.queue import QueuedRequest, Waiter, WaitQueue
from daemon.residency.settings import ResidencySettings, as_seconds
from daemon.residency.spawning import WORKER_COMMAND
from daemon.residency.starting import WorkerStarter
from daemon.residency.tally import LoadTally
from daemon.residency.worker_process import WorkerProcess

AUTOMATIC_MAX_LOADED = 3
_log = logging.getLogger("hearth.residency")


class Residency:
    """Use `acquire`; end with `close`, after which nothing of it runs."""

    def __init__(
        self,
        settings: ResidencySettings,
        placer: Placer,
        *,
        command: Sequence[str] = WORKER_COMMAND,
        worker_limits: WorkerLimits = WorkerLimits(),  # noqa: B008  (frozen)
        measure_free: Callable[[int], int] = free_bytes,
    ) -> None:
        self._settings = settings
        self._placer = placer
        self.starter = WorkerStarter(command, worker_limits)
        self._measure_free = measure_free
        self._residents: dict[WorkerKey, Resident] = {}
        self._queue = WaitQueue(settings.max_queue)
        self._running: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self.tally = LoadTally()

    def __repr__(self) -> str:
        residents = ", ".join(repr(resident) for resident in self._residents.values()) or "empty"
        state = ", closed" if self._is_closed else ""
        return f"<Residency {residents}; {len(self._queue)} waiting{state}>"

    # ---- coming ----

    async def acquire(
        self,
        model: ResolvedModel,
        *,
        context_length: int | None = None,
        keep_alive_seconds: float | msgspec.UnsetType | None = msgspec.UNSET,
        client: str = "",
        wants_row: bool = True,
    ) -> Lease:
        """The right to use `model`, loaded (and converted) first if need be.

        `context_length`: ids the request may hold, None for the setting; it limits the request, and
        only one larger than the loaded rows makes the worker load again, once it is idle.
        `keep_alive_seconds` None is forever and UNSET leaves the name's last value. `wants_row` is
        False for what does not generate. Raises Busy (queue full, closing), LoadFailed and others.
        """
        self._check_open()
        keep_alive = None if keep_alive_seconds is msgspec.UNSET else as_seconds(keep_alive_seconds)
        wish = Wish(
            model=model,
            context_length=context_length or 0,
            keep_alive_seconds=keep_alive,
            client=client,
            wants_row=wants_row,
        )
        if (resident := self._free_now(wish)) is not None:
            return self._lease(resident, wish)
        return await self._wait_for_lease(wish)

    async def _wait_for_lease(self, wish: Wish) -> Lease:
        waiter = self._queue.join(wish)
        try:
            waiter.placement = await self._placer.place(wish.model)
            self._check_open()
            self._placed(waiter)
            return await waiter.granted
        except BaseException:
            self._give_up(waiter)
            raise

    def _placed(self, waiter: Waiter) -> None:
        assert waiter.placement is not None
        waiter.view = self._view(waiter, waiter.placement)
        self._replan()

    def _check_open(self) -> None:
        if self._is_closed:
            raise Busy("the daemon is stopping")

    def _row_length(self, placement: Placement, wish: Wish) -> int:
        """Rows are never shorter than the setting, so that clients differing in it can share."""
        return placement.row_length(max(self._settings.context_length, wish.context_length))

    def _view(self, waiter: Waiter, placement: Placement) -> WaitingView:
        row_length = self._row_length(placement, waiter.wish)
        return WaitingView(
            ticket=waiter.ticket,
            key=placement.key(row_length),
            context_length=row_length,
            needed_bytes=placement.needed_bytes(row_length),
            wants_row=waiter.wish.wants_row,
        )

    def _free_now(self, wish: Wish) -> Resident | None:
        """A loaded worker for this very model, usable without passing anybody in the queue."""
        if self._queue.is_contended:
            return None
        for resident in self._residents.values():
            hold = resident.holds.get(wish.name)
            if hold is None or hold.model.digest != wish.model.digest or not resident.is_ready:
                continue
            row_length = self._row_length(resident.placement, wish)
            is_long_enough = (
                row_length <= resident.context_length
                and resident.placement.key(row_length) == resident.key
            )
            if is_long_enough and (resident.view().free_rows > 0 or not wish.wants_row):
                return resident
        return None

    def _give_up(self, waiter: Waiter) -> None:
        """The request is gone: its place in the queue too, or the lease it was just given."""
        self._queue.leave(waiter)
        granted = waiter.granted
        if granted.done() and not granted.cancelled() and granted.exception() is None:
            granted.result().release()
        granted.cancel()
        self._replan()

    def _lease(self, resident: Resident, wish: Wish) -> Lease:
        hold = self._hold(resident, wish)
        hold.stop_timer()
        resident.last_used = time.monotonic()
        self._running[wish.client] += 1
        return Lease(resident, hold, wish, self._on_lease_change)

    def _hold(self, resident: Resident, wish: Wish) -> NameHold:
        hold = resident.holds.get(wish.name)
        if hold is None:
            hold = resident.holds[wish.name] = self._new_hold(wish)
        hold.model = wish.model
        if wish.keep_alive_seconds is not None:
            hold.keep_alive_seconds = wish.keep_alive_seconds
        return hold

    def _new_hold(self, wish: Wish) -> NameHold:
        return NameHold(wish.model, as_seconds(self._settings.keep_alive_seconds))

    # ---- deciding ----

    def _replan(self) -> None:
        """Asks the plan what to do now, and does it. Called on every change."""
        if self._is_closed:
            return
        waiting = [w.view for w in self._queue.in_turn(self._running) if w.view is not None]
        if not waiting:
            return
        views = [resident.view() for resident in self._residents.values()]
        free = self._measure_free(sum(view.resident_bytes for view in views))
        max_loaded = self._settings.max_loaded or AUTOMATIC_MAX_LOADED
        budget = Budget(
            free_bytes=free,
            max_loaded=max_loaded,
            device_bytes=device_bytes(self._queue.in_turn(self._running)),
        )
        decision = plan_residency(views, waiting, budget)
        for ticket in decision.refuse:
            self._refuse(self._queue[ticket], free + sum(v.resident_bytes for v in views))
        for ticket in decision.use:
            self._grant(self._queue[ticket])
        for key in decision.unload:
            self._unload(self._residents[key], "to make room")
        if decision.load is not None:
            self._start_loading(self._queue[decision.load], free)

    def _refuse(self, waiter: Waiter, free: int) -> None:
        """A model too large for a device of its own memory goes to another device."""
        assert waiter.view is not None and waiter.placement is not None
        needed, placement = waiter.view.needed_bytes, waiter.placement
        if placement.device_bytes:
            self._move_elsewhere(waiter, too_large_for_device(placement, needed))
        else:
            self._fail(waiter, too_large(waiter.wish.name, needed, free, placement))

    def _fail(self, waiter: Waiter, error: DaemonError) -> None:
        self._queue.leave(waiter)
        if not waiter.granted.done():
            waiter.granted.set_exception(error)

    def _grant(self, waiter: Waiter) -> None:
        assert waiter.view is not None
        self._queue.leave(waiter)
        if not waiter.granted.done():
            waiter.granted.set_result(self._lease(self._residents[waiter.view.key], waiter.wish))

    # ---- loading ----

    def _start_loading(self, waiter: Waiter, free: int) -> None:
        assert waiter.view is not None and waiter.placement is not None
        wish, placement, row_length = waiter.wish, waiter.placement, waiter.view.context_length
        hold = self._new_hold(wish)
        resident = Resident(waiter.view.key, placement, row_length, loaded_as=hold)
        self._residents[resident.key] = resident
        order = order_load(self._settings, wish.name, placement, row_length, free)
        self._spawn_task(self._load(resident, order))

    async def _load(self, resident: Resident, order: LoadOrder) -> None:
        try:
            worker, loaded = await self._load_prepared(resident, order)
        except DaemonError as error:
            if not isinstance(error, DeviceFailed):
                _log.error("%s", error.message)
            self._on_load_failed(resident, error)
            return
        except BaseException:
            # Closing, or a defect: whoever waits must not wait for ever.
            self._on_load_failed(resident, Internal(f"loading model '{order.name}' was given up"))
            raise
        resident.worker, resident.loaded, resident.state = worker, loaded, "ready"
        resident.last_used = time.monotonic()
        log_loaded(order, loaded)
        self.tally.loaded(order.name, loaded.load_ns)
        self._spawn_task(self._follow(resident))
        self._replan()
        self._start_unused_timers(resident)

    async def _load_prepared(
        self, resident: Resident, order: LoadOrder
    ) -> tuple[WorkerProcess, Loaded]:
        """What was made for a load that failed is gone before anything else is decided."""
        try:
            placement = await self._placer.prepare(order.placement)
        except DaemonError as error:
            raise explained(error, order) from error
        resident.placement = placement
        order = msgspec.structs.replace(order, placement=placement)
        try:
            return await load_worker(order, self.starter)
        except BaseException:
            await asyncio.shield(self._placer.discard(placement))
            raise

    def _on_load_failed(self, resident: Resident, error: DaemonError) -> None:
        """Who waits gets the model on another device where this one is at fault; slower, and said."""
        self.tally.failed(resident.shown_name)
        self._remove(resident)
        give_up = self._move_elsewhere if isinstance(error, DeviceFailed) else self._fail
        for waiter in self._queue.in_turn(self._running):
            if waiter.view is not None and waiter.view.key == resident.key:
                give_up(waiter, error)
        self._replan()

    def _move_elsewhere(self, waiter: Waiter, error: DaemonError) -> None:
        waiter.view = None
        moving = place_again(waiter, self._placer, error, self._placed, self._fail)
        self._spawn_task(moving)

    def _start_unused_timers(self, resident: Resident) -> None:
        """Whoever wanted it may have gone while it loaded; then it still leaves some day."""
        for hold in list(resident.holds.values()):
            if not hold.users:
                self._start_timer(resident, hold)

    async def _follow(self, resident: Resident) -> None:
        """Until its process is gone, for whatever reason; then its place and memory are free."""
        assert resident.worker is not None
        await resident.worker.wait_ended()
        self.starter.forget(resident.worker)
        if resident.worker.has_died:
            self.tally.died(resident.shown_name)
        await self._placer.discard(resident.placement)
        self._remove(resident)
        self._replan()

    # ---- leaving ----

    def _on_lease_change(self, lease: Lease) -> None:
        """A row became free, or the whole lease was given back."""
        resident, hold = lease.resident, lease.hold
        resident.last_used = time.monotonic()
        if lease.is_released:
            self._running[lease.client] -= 1
            self._running += Counter()  # forgets clients at zero
            if not hold.users:
                self._start_timer(resident, hold)
        self._replan()

    def _start_timer(self, resident: Resident, hold: NameHold) -> None:
        if self._is_closed or self._residents.get(resident.key) is not resident:
            hold.stop_timer()
            return
        hold.start_timer(lambda: self._expire(resident, hold))

    def _expire(self, resident: Resident, hold: NameHold) -> None:
        hold.stop_timer()
        if hold.users or resident.holds.get(hold.name) is not hold:
            return
        if len(resident.holds) > 1:
            del resident.holds[hold.name]
        elif resident.state == "ready":
            self._unload(resident, "keep-alive is over")

    def unload(self, name: str) -> bool:
        """Ends `name`'s hold once its requests are done; False when it has none. Never blocks."""
        found = False
        for resident in list(self._residents.values()):
            hold = resident.holds.get(name)
            if hold is not None and resident.state != "unloading":
                found = True
                hold.keep_alive_seconds = 0.0
                if not hold.users and resident.state == "ready":
                    self._expire(resident, hold)
        return found

    def _unload(self, resident: Resident, reason: str) -> None:
        assert resident.worker is not None
        _log.info("unloading %s: %s", resident.shown_name, reason)
        resident.state = "unloading"
        for hold in resident.holds.values():
            hold.stop_timer()
        self._spawn_task(resident.worker.stop())

    def _remove(self, resident: Resident) -> None:
        for hold in resident.holds.values():
            hold.stop_timer()
        if self._residents.get(resident.key) is resident:
            del self._residents[resident.key]

    # ---- showing ----

    def loaded(self) -> list[LoadedModel]:
        """What is loaded or loading, the one that stays longest first."""
        shown = [describe_loaded(r) for r in self._residents.values() if r.state != "unloading"]
        return sorted(shown, key=lambda model: model.expires_at, reverse=True)

    def queue(self) -> list[QueuedRequest]:
        """Who waits, next one first."""
        return self._queue.visible(self._running)

    # ---- the end ----

    async def close(self) -> None:
        """Fails what waits, ends every worker, returns when all are reaped. May be called again."""
        self._is_closed = True
        for waiter in self._queue.in_turn({}):
            self._fail(waiter, Busy("the daemon is stopping"))
        for resident in list(self._residents.values()):
            if resident.worker is None:
                continue
            self._unload(resident, "the daemon is stopping")
        for task in list(self._tasks):
            if task.get_name() in ("load", "place_again"):
                task.cancel()
        await self.starter.close()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn_task(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work, name=work.__name__.strip("_"))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
