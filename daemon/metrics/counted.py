"""What is counted as it happens, because nothing remembers it until the next scrape.

Owned by the event loop. A series is touched when a request or an answer ends, never for a piece of one.
Names of models are those of the shelf, as it spells them; what a client sent never becomes a label.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from backends.types import Delta, Progress, Usage
from daemon.errors import Busy, Cancelled
from daemon.metrics.names import BoundedNames

FIRST_PIECE_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)
DECODE_RATES = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)
# Nothing was sent: whoever asked was gone before.
NO_STATUS = 499

# A second series beside every one, which says when it was first seen; nobody here asks for it.
disable_created_metrics()


class Metrics:
    """The daemon's own registry, and the few places that write to it."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.names = BoundedNames()
        self._requests = Counter(
            "hearth_requests",
            "Answered HTTP requests; one that was gone before its answer has the status 499.",
            ("dialect", "route", "status"),
            registry=registry,
        )
        self._answers = Counter(
            "hearth_answers",
            "Generations by how they ended; cancelled: taken back, or the client left.",
            ("model", "outcome"),
            registry=registry,
        )
        self._prompt = self._ids("prompt", "Ids of prompts, the cached ones among them.")
        self._cached = self._ids("cached", "Ids of prompts that were not computed again.")
        self._completion = self._ids("completion", "Ids of answers.")
        self._dropped = self._ids("dropped", "Ids that did not fit and were cut.")
        self._first_piece = Histogram(
            "hearth_first_piece_seconds",
            "From an accepted request to the first piece of its answer, waiting and loading included.",
            ("model",),
            buckets=FIRST_PIECE_SECONDS,
            registry=registry,
        )
        self._decode_rate = Histogram(
            "hearth_decode_ids_per_second",
            "Ids of an answer by the seconds they took, prefill not included.",
            ("model",),
            buckets=DECODE_RATES,
            registry=registry,
        )

    def _ids(self, kind: str, text: str) -> Counter:
        text += " Answers whose client left before their end are not in it."
        return Counter(f"hearth_{kind}_ids", text, ("model",), registry=self.registry)

    def count_request(self, dialect: str, route: str, status: int | None) -> None:
        """`route` is the template that the path matched, "other" for none."""
        self._requests.labels(dialect, route, str(status or NO_STATUS)).inc()

    def count_ids(self, name: str, usage: Usage) -> None:
        """What one answer of the model took and gave."""
        label = self.names.label(name)
        self._prompt.labels(label).inc(usage.prompt_tokens)
        self._cached.labels(label).inc(usage.cached_tokens)
        self._completion.labels(label).inc(usage.completion_tokens)
        self._dropped.labels(label).inc(usage.dropped_tokens)
        if usage.completion_tokens > 1 and usage.decode_ns > 0:
            rate = usage.completion_tokens * 1e9 / usage.decode_ns
            self._decode_rate.labels(label).observe(rate)

    def counted_ids(self) -> tuple[int, int]:
        """Of all prompts and of all answers so far."""
        return _total(self._prompt), _total(self._completion)

    def count_answer(self, name: str, outcome: str) -> None:
        self._answers.labels(self.names.label(name), outcome).inc()

    def observe_first_piece(self, name: str, seconds: float) -> None:
        self._first_piece.labels(self.names.label(name)).observe(seconds)

    def answer(self, name: str) -> CountedAnswer:
        """One generation of the model, from now until its `with` is left."""
        return CountedAnswer(self, name)


class CountedAnswer:
    """`last` is set to every event, `begin` is called with each until `has_begun`."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self.last: Delta | Progress | None = None
        self.has_begun = False
        self._metrics = metrics
        self._name = name
        self._began_at = time.monotonic()

    def begin(self, event: Delta | Progress) -> None:
        if isinstance(event, Delta) and event.finish != "cancelled":
            self.has_begun = True
            seconds = time.monotonic() - self._began_at
            self._metrics.observe_first_piece(self._name, seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        last = self.last
        if isinstance(last, Delta) and last.finish is not None:
            self._metrics.count_answer(self._name, last.finish)
            if last.usage is not None:
                self._metrics.count_ids(self._name, last.usage)
        else:
            self._metrics.count_answer(self._name, _outcome(error))


def _total(counter: Counter) -> int:
    samples = (sample for metric in counter.collect() for sample in metric.samples)
    return int(sum(sample.value for sample in samples))


def _outcome(error: BaseException | None) -> str:
    if isinstance(error, Cancelled | asyncio.CancelledError | GeneratorExit):
        return "cancelled"
    return "refused" if isinstance(error, Busy) else "failed"
