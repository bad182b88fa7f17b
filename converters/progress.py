"""Progress of a conversion as JSON lines on standard output, at most ten a second per phase."""

from __future__ import annotations

import json
import sys
import time

_LEAST_SECONDS_BETWEEN = 0.1


def write_line(**fields: object) -> None:
    """One JSON object and a newline, at once. Raises BrokenPipeError when nobody listens."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


class Progress:
    """The first and the last line of a phase always appear, the last one with all bytes done."""

    def __init__(self) -> None:
        self._phase = ""
        self._done = self._total = self._told = 0
        self._last_seconds = 0.0

    def start(self, phase: str, total: int = 0) -> None:
        """Ends the phase before."""
        self.finish()
        self._phase, self._done, self._total = phase, 0, total
        self._report()

    def advance(self, count: int) -> None:
        """`count` more bytes of the phase are done; paddings need not be told."""
        self._done = min(self._done + count, self._total)
        if time.monotonic() - self._last_seconds >= _LEAST_SECONDS_BETWEEN:
            self._report()

    def finish(self) -> None:
        self._done = self._total
        if self._told < self._total:
            self._report()

    def _report(self) -> None:
        self._last_seconds, self._told = time.monotonic(), self._done
        write_line(phase=self._phase, done=self._done, total=self._total)
