"""What `/api/ps` shows of one worker."""

from __future__ import annotations

import datetime
import time
from typing import Literal

import msgspec

from daemon.models.resolved import ResolvedModel
from daemon.residency.lease import NameHold, Resident
from daemon.residency.settings import FOREVER

# "Forever" as clients know it: the largest 64-bit count of nanoseconds from now.
FOREVER_SHOWN_SECONDS = (2**63 - 1) / 1e9


Serving = Literal["idle", "busy", "stalled"]


class LoadedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A row of /api/ps: one worker, under the name it was loaded by. Sizes in bytes.

    `model` is what `acquire` was given; `expires_at` lies 292 years ahead for "forever"; `reason` says
    why it runs where it does; `rows` (0 while it loads) is how many answers it can give at once.
    `serving` is "stalled" while it owes answers and has long shown no sign of working on them.
    """

    model: ResolvedModel
    size: int
    size_vram: int
    expires_at: datetime.datetime
    context_length: int
    device: str
    users: int
    rows: int = 0
    used_rows: int = 0
    serving: Serving = "idle"
    reason: str = ""

    @property
    def name(self) -> str:
        return self.model.name.short


def describe_loaded(resident: Resident) -> LoadedModel:
    """The row of one worker, which may still be loading."""
    device = resident.loaded.device if resident.loaded else resident.placement.device
    return LoadedModel(
        model=resident.holds[resident.shown_name].model,
        size=resident.resident_bytes,
        size_vram=0 if device == "cpu" else resident.resident_bytes,
        expires_at=_wall_clock(max(map(_seconds_left, resident.holds.values()))),
        context_length=resident.context_length,
        device=device,
        users=resident.users,
        rows=resident.loaded.rows if resident.loaded else 0,
        used_rows=resident.used_rows,
        serving=_serving(resident),
        reason=_reason(resident),
    )


def _serving(resident: Resident) -> Serving:
    """A model that is being loaded is at work; for that there is a limit of its own."""
    if resident.worker is None:
        return "busy"
    if resident.worker.is_stalled:
        return "stalled"
    return "busy" if resident.worker.active else "idle"


def _reason(resident: Resident) -> str:
    """With the type of numbers, where the engine chose one, and how a device decodes."""
    reason, loaded = resident.placement.reason, resident.loaded
    if loaded and loaded.numbers:
        reason += f", computing in {loaded.numbers}"
    return f"{reason}; {loaded.steps}" if loaded and loaded.steps else reason


def _seconds_left(hold: NameHold) -> float:
    """While it is used, as if its last user left now."""
    if hold.users or hold.expires_at == FOREVER:
        return hold.keep_alive_seconds
    return hold.expires_at - time.monotonic()


def _wall_clock(seconds_ahead: float) -> datetime.datetime:
    now = datetime.datetime.now().astimezone()
    return now + datetime.timedelta(seconds=min(seconds_ahead, FOREVER_SHOWN_SECONDS))
