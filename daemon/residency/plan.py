"""Who may use what is loaded, what to load next, what must go: decided here, done elsewhere.

Pure: `plan_residency` looks at everything at once and returns one `Decision`; `Residency` calls it
on every arrival and departure and carries it out. Nothing here waits, measures or changes anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

State = Literal["loading", "ready", "unloading"]
# Beside other models only this part of the free memory is given away, against wrong estimates.
_SHARED_PART = (4, 5)


class WorkerKey(msgspec.Struct, frozen=True, kw_only=True):
    """What makes two requests share a worker. `artifact` is a folder; names are no part of it.

    `is_long`: a longrope model whose rows are longer than its original context, which uses another
    table of frequencies.
    """

    artifact: str
    adapters: tuple[str, ...] = ()
    projector: str = ""
    draft: str = ""
    device: str = "cpu"
    is_long: bool = False


class LoadedView(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as the plan sees it. `free_rows` may be negative; `last_used` is any rising clock."""

    key: WorkerKey
    state: State = "ready"
    context_length: int = 4096
    users: int = 0
    free_rows: int = 1
    resident_bytes: int = 0
    last_used: float = 0.0

    @property
    def is_idle(self) -> bool:
        return self.state == "ready" and self.users == 0


class WaitingView(msgspec.Struct, frozen=True, kw_only=True):
    """A request that waits, in the order of its turn; `ticket` grows with time.

    `needed_bytes` is the estimate for loading its model with rows of `context_length` ids.
    """

    ticket: int
    key: WorkerKey
    context_length: int = 4096
    needed_bytes: int = 0
    wants_row: bool = True


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """`free_bytes` is what the machine could still give now, beside the workers that run.

    `device_bytes`: all memory of each device that has its own; models on it take none of `free_bytes`.
    """

    free_bytes: int
    max_loaded: int
    device_bytes: Mapping[str, int] = {}

    def free_on(self, device: str, loaded: Sequence[LoadedView]) -> int:
        if device not in self.device_bytes:
            return self.free_bytes
        held = sum(view.resident_bytes for view in loaded if view.key.device == device)
        return max(0, self.device_bytes[device] - held)


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """`use`: tickets that get their loaded worker now. `load`: the ticket whose model comes next.

    `refuse`: tickets whose model fits in no way. Unloading comes first, and another plan after it.
    """

    use: tuple[int, ...] = ()
    load: int | None = None
    unload: tuple[WorkerKey, ...] = ()
    refuse: tuple[int, ...] = ()


def plan_residency(
    loaded: Sequence[LoadedView], waiting: Sequence[WaitingView], budget: Budget
) -> Decision:
    """What to do now. `waiting` is in the order of turns.

    Requests for a loaded model with a free row never wait for another model's load. One model loads
    at a time. Idle workers go in the order of their last use; when only busy ones could make room,
    they take no request that came after the one that needs the room.
    """
    refused = tuple(w.ticket for w in waiting if _is_hopeless(w, loaded, budget))
    hopeful = [w for w in waiting if w.ticket not in refused]
    head = _next_to_load(loaded, hopeful)
    victims = _victims(head, loaded, budget) if head is not None else ()
    held = {victim.key: head.ticket for victim in victims if head is not None}
    use = _usable(loaded, hopeful, held)
    if head is None or any(view.state != "ready" for view in loaded):
        return Decision(use=use, refuse=refused)
    used_keys = {w.key for w in hopeful if w.ticket in use}
    unload = tuple(v.key for v in victims if v.is_idle and v.key not in used_keys)
    return Decision(use=use, load=None if victims else head.ticket, unload=unload, refuse=refused)


def _serves(view: LoadedView, request: WaitingView) -> bool:
    return view.key == request.key and view.context_length >= request.context_length


def _next_to_load(
    loaded: Sequence[LoadedView], waiting: Sequence[WaitingView]
) -> WaitingView | None:
    """The first request whose model is not there, or there with rows that are too short."""
    for request in waiting:
        if not any(_serves(view, request) for view in loaded if view.state != "unloading"):
            return request
    return None


def _is_hopeless(request: WaitingView, loaded: Sequence[LoadedView], budget: Budget) -> bool:
    if any(_serves(view, request) for view in loaded):
        return False
    if any(view.state != "ready" for view in loaded):
        return False  # what is measured now will soon be different
    beside = _beside(request, loaded, budget)
    everything = budget.free_on(request.key.device, loaded)
    return request.needed_bytes > everything + sum(view.resident_bytes for view in beside)


def _beside(request: WaitingView, loaded: Sequence[LoadedView], budget: Budget) -> list[LoadedView]:
    """The workers whose memory the request's model could have."""
    device, own = request.key.device, budget.device_bytes
    if device in own:
        return [view for view in loaded if view.key.device == device]
    return [view for view in loaded if view.key.device not in own]


def _victims(
    head: WaitingView, loaded: Sequence[LoadedView], budget: Budget
) -> tuple[LoadedView, ...]:
    """The fewest workers that must go before `head` can load: idle ones first, oldest use first.

    Workers on other devices come last: their going only makes room in number.
    """
    outgrown = [view for view in loaded if view.key == head.key]
    useful = {view.key for view in _beside(head, loaded, budget)}
    others = sorted(
        (view for view in loaded if view.key != head.key),
        key=lambda view: (view.key not in useful, not view.is_idle, view.last_used),
    )
    victims = list(outgrown)
    for candidate in others:
        if _has_room(head, loaded, victims, budget):
            break
        victims.append(candidate)
    return tuple(victims)


def _has_room(
    head: WaitingView,
    loaded: Sequence[LoadedView],
    victims: Sequence[LoadedView],
    budget: Budget,
) -> bool:
    staying = len(loaded) - len(victims)
    free = budget.free_on(head.key.device, loaded)
    free += sum(view.resident_bytes for view in _beside(head, victims, budget))
    if staying:
        part, whole = _SHARED_PART
        free = free * part // whole
    return staying < budget.max_loaded and head.needed_bytes <= free


def _usable(
    loaded: Sequence[LoadedView],
    waiting: Sequence[WaitingView],
    held: dict[WorkerKey, int],
) -> tuple[int, ...]:
    rows = {view.key: view.free_rows for view in loaded if view.state == "ready"}
    by_key = {view.key: view for view in loaded if view.state == "ready"}
    use: list[int] = []
    for request in waiting:
        view = by_key.get(request.key)
        if view is None or not _serves(view, request):
            continue
        if request.ticket > held.get(request.key, request.ticket):
            continue
        if request.wants_row:
            if rows[request.key] <= 0:
                continue
            rows[request.key] -= 1
        use.append(request.ticket)
    return tuple(use)
