"""What the rooms know at the moment of a scrape: nothing here is kept between two of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from daemon.metrics.names import BoundedNames
from daemon.models.jobs import JobView
from daemon.residency.loaded import LoadedModel
from daemon.residency.queue import QueuedRequest
from daemon.residency.tally import LoadTally

_Values = Counter[tuple[str, ...]]
_Series = Mapping[tuple[str, ...], float]


class ResidencyView(Protocol):
    """What is in memory, as `Residency` shows it."""

    @property
    def tally(self) -> LoadTally: ...
    def loaded(self) -> list[LoadedModel]: ...
    def queue(self) -> list[QueuedRequest]: ...


class ConversionsView(Protocol):
    """As `Conversions` shows them. `outcomes` counts those that are over."""

    @property
    def outcomes(self) -> Mapping[str, int]: ...
    def jobs(self) -> list[JobView]: ...


def of_residency(residency: ResidencyView, names: BoundedNames) -> Iterator[Metric]:
    waiting = residency.queue()
    yield _gauge("hearth_queue_length", "Requests that wait for a model or a row.", len(waiting))
    oldest = max((request.age_seconds for request in waiting), default=0.0)
    yield _gauge("hearth_queue_oldest_seconds", "How long the oldest of them has waited.", oldest)
    yield from _of_loaded(residency.loaded(), names)
    yield from _of_tally(residency.tally, names)


def _of_loaded(loaded: list[LoadedModel], names: BoundedNames) -> Iterator[Metric]:
    """Two workers under one label are one value: a series may come only once."""
    yield _gauge(
        "hearth_loaded_models", "Workers that hold a model or are loading it.", len(loaded)
    )
    sizes, used, free, stalled = _Values(), _Values(), _Values(), _Values()
    for model in loaded:
        label = names.label(model.name)
        sizes[label, model.device] += model.size
        used[label,] += model.used_rows
        free[label,] += model.rows - model.used_rows
        stalled[label,] += model.serving == "stalled"
    text = "Bytes of a loaded model, as its worker measured them."
    yield _gauges("hearth_model_resident_bytes", text, ("model", "device"), sizes)
    yield _gauges("hearth_model_rows_used", "Rows that answers run in.", ("model",), used)
    yield _gauges(
        "hearth_model_rows_free", "Rows that a request could have at once.", ("model",), free
    )
    text = "Workers that owe answers and have long shown no sign of working on them."
    yield _gauges("hearth_model_stalled", text, ("model",), stalled)


def _of_tally(tally: LoadTally, names: BoundedNames) -> Iterator[Metric]:
    loads = _labelled(tally.loads, names)
    yield _counters("hearth_loads", "Loads of a model.", ("model", "outcome"), loads)
    seconds = _labelled(tally.seconds, names)
    text = "Seconds that workers took to load a model."
    yield _counters("hearth_load_seconds", text, ("model",), seconds)
    deaths = _labelled(tally.deaths, names)
    text = "Workers with a loaded model that ended unasked or had to be killed."
    yield _counters("hearth_worker_deaths", text, ("model",), deaths)


def of_conversions(conversions: ConversionsView) -> Iterator[Metric]:
    outcomes = {(outcome,): float(count) for outcome, count in conversions.outcomes.items()}
    text = "Conversions that are over."
    yield _counters("hearth_conversions", text, ("outcome",), outcomes)
    jobs = conversions.jobs()
    waiting = sum(job.progress.phase == "queued" for job in jobs)
    text = "Conversions under way."
    yield _gauge("hearth_conversions_running", text, len(jobs) - waiting)
    yield _gauge("hearth_conversions_waiting", "Conversions that wait for their turn.", waiting)


def of_pulls(pulled_bytes: int) -> Iterator[Metric]:
    text = "Bytes of models that registries sent."
    yield CounterMetricFamily("hearth_pulled_bytes", text, value=pulled_bytes)


def _labelled(counts: _Series, names: BoundedNames) -> _Series:
    """The first part of each key is the model's name."""
    found = _Values()
    for (name, *rest), count in counts.items():
        found[names.label(name), *rest] += count  # pyright: ignore[reportArgumentType]  a float adds too
    return found


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _gauges(name: str, text: str, labels: Sequence[str], values: _Series) -> Metric:
    return _filled(GaugeMetricFamily(name, text, labels=labels), values)


def _counters(name: str, text: str, labels: Sequence[str], values: _Series) -> Metric:
    return _filled(CounterMetricFamily(name, text, labels=labels), values)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: _Series) -> Metric:
    for key, value in values.items():
        family.add_metric(key, value)
    return family
