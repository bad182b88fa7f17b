"""How many bytes caches of keys and values, windows and states take, and whether there is room."""

from __future__ import annotations

from typing import NamedTuple

# mlx-lm's caches grow in steps of so many positions.
STEP = 256


class RowBytes(NamedTuple):
    """Of one row: bytes of a position, of its full windows, of its states."""

    position: int
    windows: int
    states: int

    def of(self, positions: int) -> int:
        """All that a row of so many positions may come to take."""
        return self.position * (-(-positions // STEP) * STEP) + self.windows + self.states


def plan_context(wanted: int, row: RowBytes, budget_bytes: int) -> int:
    """The longest row, up to `wanted`, that the budget holds; 0: not even a short one."""
    if row.of(wanted) <= budget_bytes:
        return wanted
    rest = budget_bytes - row.windows - row.states
    steps = rest // max(1, row.position * STEP)
    return max(0, min(wanted, steps * STEP))


def plan_rows(ceiling: int, row_bytes: int, budget_bytes: int) -> int:
    """Requests that may run at once: as many half-full rows as the budget holds, at least one."""
    return max(1, min(ceiling, 2 * budget_bytes // max(1, row_bytes)))
