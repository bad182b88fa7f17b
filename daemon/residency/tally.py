"""How loading went since the daemon started, by the names that were loaded."""

from __future__ import annotations

from collections import defaultdict

from daemon.metrics.names import BoundedNames


class LoadTally:
    """`loads` by name and outcome (loaded, failed), `seconds` and `deaths` by name."""

    def __init__(self) -> None:
        self.loads = defaultdict[tuple[str, ...], float](float)
        self.seconds = defaultdict[tuple[str, ...], float](float)
        self.deaths = defaultdict[tuple[str, ...], float](float)
        # Names come and go with the shelf; the memory of them must not only grow.
        self._names = BoundedNames()

    def loaded(self, name: str, load_ns: int) -> None:
        label = self._names.label(name)
        self.loads[label, "loaded"] += 1
        self.seconds[label,] += load_ns / 1e9

    def failed(self, name: str) -> None:
        self.loads[self._names.label(name), "failed"] += 1

    def died(self, name: str) -> None:
        self.deaths[self._names.label(name),] += 1
