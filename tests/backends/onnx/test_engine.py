"""What the ONNX engine does beyond the contract suite: numbers, rows, failing runs, the gap."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from backends.engine.sampling import log_sum_exp
from backends.onnx import backend
from backends.onnx.binding import BoundGraph
from backends.onnx.engine import OnnxEngine
from backends.onnx.scores import Scores
from backends.types import (
    Failed,
    Finished,
    GenerateRequest,
    Load,
    Prefilled,
    Sampled,
    Sampling,
    TokenEvent,
)
from tests.backends.onnx.tiny_artifact import CONTEXT, VOCABULARY, write_tiny_artifact

GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_artifact(folder)
    return folder


def load(folder: pathlib.Path, **fields) -> OnnxEngine:
    wanted: dict[str, Any] = {"rows": 4, "context_length": CONTEXT, "threads": 1} | fields
    engine = backend.load(Load(request_id="l", backend="onnx", artifact=str(folder), **wanted))
    assert isinstance(engine, OnnxEngine)
    return engine


def request(request_id: str, length: int, max_tokens: int = 8, **fields) -> GenerateRequest:
    prompt = tuple(8 + (i * 7 + length) % (VOCABULARY - 8) for i in range(length))
    fields.setdefault("sampling", GREEDY)
    return GenerateRequest(
        request_id=request_id, prompt_ids=prompt, max_tokens=max_tokens, **fields
    )


def run(engine: OnnxEngine) -> dict[str, list[TokenEvent]]:
    events: dict[str, list[TokenEvent]] = {}
    for _ in range(5000):
        if not engine.has_work():
            break
        for event in engine.step():
            events.setdefault(event.request_id, []).append(event)
    return events


def ids_of(events: list[TokenEvent]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, Sampled)]


class Spy:
    """Stands in the way of every run: records the scores, or raises when told to."""

    def __init__(self, engine: OnnxEngine) -> None:
        graph = engine._graph
        assert graph is not None
        self.inner: Callable[..., Scores] = graph.run
        self.calls: list[tuple[int, tuple[int, ...], list[int]]] = []
        self.logits: list[np.ndarray] = []
        self.fail_on: Callable[[int, int], bool] = lambda first, count: False
        graph.run = self.run  # type: ignore[method-assign]

    def run(self, first: int, embeddings: np.ndarray, totals, wanted, tables=None) -> Scores:
        if self.fail_on(first, len(totals)):
            raise RuntimeError("Failed to allocate memory for requested buffer of size 9")
        self.calls.append((first, embeddings.shape[:2], list(totals)))
        scores = self.inner(first, embeddings, totals, wanted, tables)
        self.logits += [line.copy() for line in scores.logits]
        for place in range(len(wanted)):
            assert scores.lse[place] == pytest.approx(log_sum_exp(scores.logits[place]), abs=1e-4)
            order = np.argsort(-scores.logits[place], kind="stable")[: scores.ids.shape[1]]
            assert scores.ids[place].tolist() == order.tolist()
        return scores


def test_prefill_in_chunks_and_decode_give_the_logits_of_one_whole_run(artifact: pathlib.Path):
    """Positions, KV writes and chunk borders: feeding ids one by one is the reference."""
    engine = load(artifact)
    spy = Spy(engine)
    engine.add(request("a", 150, max_tokens=20))
    ids = ids_of(run(engine)["a"])
    assert [shape for _, shape, _ in spy.calls][:2] != [(1, 150)]
    fed = [*request("a", 150).prompt_ids, *ids[:-1]]
    row = engine._rows.take(len(fed))
    assert row is not None
    reference = []
    for position, token_id in enumerate(fed):
        embedding = engine._embedding.lookup([token_id])[None]
        reference.append(spy.inner(row.index, embedding, [position + 1], [0]).logits[0].copy())
    for found, expected in zip(spy.logits, reference[149:], strict=True):
        assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_a_row_has_the_same_logits_in_company_bit_for_bit(artifact: pathlib.Path):
    engine = load(artifact)
    spy = Spy(engine)
    engine.add(request("a", 70, max_tokens=10))
    run(engine)
    alone = spy.logits
    spy.logits = []
    engine.add(request("a", 70, max_tokens=10))
    for n in range(3):
        engine.add(request(f"b{n}", 10 + n, max_tokens=200))
    run(engine)
    company = [line for line in spy.logits if any(np.array_equal(line, own) for own in alone)]
    assert len(company) == 10


def test_decoding_rows_share_one_run(artifact: pathlib.Path):
    engine = load(artifact)
    spy = Spy(engine)
    for n in range(4):
        engine.add(request(f"r{n}", 4, max_tokens=30))
    run(engine)
    widths = [shape[0] for _, shape, _ in spy.calls]
    assert max(widths) == 4
    assert len(widths) < 60  # 4 prefills and some 30 shared runs, not 120


def test_holes_are_closed(artifact: pathlib.Path):
    engine = load(artifact)
    spy = Spy(engine)
    lengths = {"r0": 3, "r1": 40, "r2": 3, "r3": 40}
    alone = {}
    for name, count in lengths.items():
        engine.add(request(name, 20, max_tokens=count))
        alone |= run(engine)
    spy.calls.clear()
    for name, count in lengths.items():
        engine.add(request(name, 20, max_tokens=count))
    together = run(engine)
    assert {k: ids_of(v) for k, v in together.items()} == {k: ids_of(v) for k, v in alone.items()}
    assert (2, 1) in [shape for _, shape, _ in spy.calls[-30:]]


def test_a_failing_decode_run_costs_only_its_requests(artifact: pathlib.Path):
    engine = load(artifact, rows=2)
    spy = Spy(engine)
    for n in range(3):
        engine.add(request(f"r{n}", 5, max_tokens=10))
    spy.fail_on = lambda first, count: count == 2
    events = run(engine)
    ends = {name: found[-1] for name, found in events.items()}
    assert isinstance(ends["r2"], Finished)
    for name in ("r0", "r1"):
        end = ends[name]
        assert isinstance(end, Failed)
        assert (end.code, "allocate" in end.message) == ("memory", True)
    assert engine.status().kv_bytes == 0
    assert engine.status().active == 0


def test_a_failing_prefill_costs_one_request(artifact: pathlib.Path):
    engine = load(artifact)
    spy = Spy(engine)
    engine.add(request("good", 5, max_tokens=30))
    engine.step()
    bad = engine._rows.count - 1
    engine._rows._free = {bad}
    spy.fail_on = lambda first, count: first == bad
    engine.add(request("bad", 90))
    events = run(engine)
    assert isinstance(events["bad"][-1], Failed)
    assert isinstance(events["good"][-1], Finished)


def test_logits_that_are_no_numbers_fail_their_request(artifact: pathlib.Path):
    engine = load(artifact)
    graph = engine._graph
    assert graph is not None
    inner = graph.run

    def broken(*arguments) -> Scores:
        scores = inner(*arguments)
        scores.lse[:1] = np.nan
        return scores

    graph.run = broken  # type: ignore[method-assign]
    engine.add(request("a", 5))
    (_, end) = run(engine)["a"]
    assert isinstance(end, Failed)
    assert "not numbers" in end.message


def test_prefill_and_decode_alternate(artifact: pathlib.Path):
    engine = load(artifact)
    engine.add(request("talking", 4, max_tokens=300))
    while not any(isinstance(event, Sampled) for event in engine.step()):
        pass
    engine._pace.chunk = lambda remaining, **_: min(remaining, 32)  # type: ignore[method-assign]
    engine.add(request("long", 320))
    kinds: list[type] = []
    for _ in range(8):
        kinds += [type(event) for event in engine.step()]
    assert kinds in ([Prefilled, Sampled] * 4, [Sampled, Prefilled] * 4)


def test_the_kv_cache_is_counted_and_given_back(artifact: pathlib.Path):
    engine = load(artifact)
    engine.add(request("a", 100, max_tokens=50))
    while not any(isinstance(event, Sampled) for event in engine.step()):
        pass
    held = engine.status().kv_bytes
    assert held >= 100 * 2 * 2 * 2 * 16 * 4
    engine.cancel("a")
    assert engine.status().kv_bytes == 0


def test_requests_wait_for_the_kv_budget(artifact: pathlib.Path):
    position_bytes = 2 * 2 * 2 * 16 * 4
    engine = load(artifact, kv_bytes=100 * position_bytes, context_length=100)
    for n in range(4):
        engine.add(request(f"r{n}", 10, max_tokens=30))
    most = 0
    while engine.has_work():
        engine.step()
        most = max(most, engine.status().active)
    assert most == 2


def test_full_logits_are_used_where_the_top_k_is_not_enough(artifact: pathlib.Path):
    wide = Sampling(temperature=1.5, top_k=0, top_p=1.0, seed=2)
    engine = load(artifact)
    engine.add(request("a", 10, max_tokens=200, sampling=wide))
    spy = Spy(engine)
    ids = ids_of(run(engine)["a"])
    outside = [
        token_id
        for token_id, logits in zip(ids, spy.logits, strict=True)
        if token_id not in np.argsort(-logits, kind="stable")[:64]
    ]
    assert outside


def test_logprobs_are_of_the_raw_logits(artifact: pathlib.Path):
    engine = load(artifact)
    spy = Spy(engine)
    sampling = Sampling(temperature=0.5, top_k=3, repeat_penalty=1.3, seed=1)
    engine.add(request("a", 10, max_tokens=5, sampling=sampling, top_logprobs=80))
    sampled = [event for event in run(engine)["a"] if isinstance(event, Sampled)]
    for event, logits in zip(sampled, spy.logits, strict=True):
        total = log_sum_exp(logits)
        assert event.logprob == pytest.approx(float(logits[event.token_id]) - total, abs=1e-4)
        order = np.argsort(-logits, kind="stable")[:80]
        assert [token_id for token_id, _ in event.top] == order.tolist()
        assert event.top[79][1] == pytest.approx(float(logits[order[79]]) - total, abs=1e-4)


def test_the_graph_runs_without_wanted_rows(artifact: pathlib.Path):
    engine = load(artifact)
    graph = engine._graph
    assert isinstance(graph, BoundGraph)
    scores = graph.run(0, np.zeros((1, 3, 64), np.float32), [3], [])
    assert [part.shape[0] for part in scores] == [0, 0, 0, 0, 0]


def test_on_precise_artifacts_reproducible_requests_run_alone(tmp_path: pathlib.Path):
    """Sums of fp32 depend on what else is in a run, and on how a prompt is cut."""
    write_tiny_artifact(tmp_path, accuracy_level=0)
    engine = load(tmp_path)
    assert not engine.capabilities.reproducible_batches
    exact = request("exact", 300, max_tokens=30, reproducible=True)
    engine.add(exact)
    alone = ids_of(run(engine)["exact"])
    for n in range(3):
        engine.add(request(f"a{n}", 5 + n, max_tokens=20))
    engine.add(exact)
    engine.add(request("late", 5, max_tokens=20))
    found: list[int] = []
    together = 0
    while engine.has_work():
        for event in engine.step():
            if event.request_id == "exact" and isinstance(event, Sampled):
                found.append(event.token_id)
        ids = {seat.generation.id for seat in engine._seats()}
        assert ids == {"exact"} or "exact" not in ids
        together = max(together, len(ids))
    assert (found, together) == (alone, 3)
