"""What of a model fits into a device's memory. Pure; sizes in bytes.

A device's memory is real at once, so nothing is promised that is not there: the weights, every row
at its full length, one more plane for the moment in which rows grow, and what runs need themselves.
"""

from __future__ import annotations

from typing import NamedTuple

from backends.types import EngineError

# Scratch of the widest products, activations of a prefill chunk, the libraries' own.
RESERVE_BYTES = 768 << 20
GIB = 1 << 30


class DevicePlan(NamedTuple):
    """`active` rows may run at once, `idle` are kept for later ones; one more lets rows move."""

    active: int
    idle: int

    @property
    def rows(self) -> int:
        return self.active + self.idle + (self.active > 1)


def plan_device(
    free_bytes: int,
    *,
    weight_bytes: int,
    row_bytes: int,
    planes: int,
    rows: int,
    most_idle: int,
    state_bytes: int = 0,
) -> DevicePlan:
    """For rows of one fixed length, `row_bytes` in all planes, and `state_bytes` of a row's states.

    Raises EngineError("device").
    """
    room = free_bytes - weight_bytes - RESERVE_BYTES
    # While one plane grows it is there twice.
    # States are read in one place and written in another.
    cost = row_bytes + -(-row_bytes // max(1, planes)) + 2 * state_bytes
    fitting = max(0, room) // max(1, cost)
    if fitting < 1:
        needed = weight_bytes + RESERVE_BYTES + cost
        raise EngineError(
            "device",
            f"the GPU has {_gib(free_bytes)} free and the model needs {_gib(needed)} "
            f"({_gib(weight_bytes)} for weights, {_gib(cost)} for one context)",
        )
    active = max(1, min(rows, fitting - 1))
    spare = fitting - active - (active > 1)
    return DevicePlan(active=active, idle=max(0, min(most_idle, spare)))


def check_room(free_bytes: int, *, weight_bytes: int) -> None:
    """For a model that keeps nothing between runs. Raises EngineError("device")."""
    needed = weight_bytes + RESERVE_BYTES
    if free_bytes < needed:
        raise EngineError(
            "device", f"the GPU has {_gib(free_bytes)} free and the model needs {_gib(needed)}"
        )


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
