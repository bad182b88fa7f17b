"""A request whose device failed is placed on another one, where there is one: slower, and said."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from daemon.errors import DaemonError
from daemon.residency.placement import Placer
from daemon.residency.queue import Waiter

_log = logging.getLogger("hearth.residency")


def device_bytes(waiting: Iterable[Waiter]) -> dict[str, int]:
    """All memory of the devices that have their own, as far as anyone asks for them."""
    placements = [waiter.placement for waiter in waiting]
    return {one.device: one.device_bytes for one in placements if one and one.device_bytes}


async def place_again(
    waiter: Waiter,
    placer: Placer,
    reason: DaemonError,
    placed: Callable[[Waiter], None],
    fail: Callable[[Waiter, DaemonError], None],
) -> None:
    """`placed` is told when `waiter` has another placement, `fail` when there is none."""
    assert waiter.placement is not None
    _log.warning("%s; another device is taken", reason.message)
    placer.avoid(waiter.wish.model, waiter.placement, reason.message)
    try:
        waiter.placement = await placer.place(waiter.wish.model)
    except DaemonError as error:
        fail(waiter, error)
    else:
        placed(waiter)
