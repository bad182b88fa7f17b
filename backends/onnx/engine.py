"""The engine on ONNX Runtime: one loaded model, many requests on rows of one KV cache.

Owns the order of things: requests wait, take a row, are prefilled chunk by chunk (one row at a time,
on a view of its row), then decode together in as few runs as their rows allow. While some decode and
one prefills, the two alternate. A failing run costs the requests that were in it and nothing else.
Never called from two threads; request ids are unique among the living (a second request of the same
id ends both with one `Failed`).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from backends.engine.generation import Generation, plan_limits
from backends.engine.sampling import Sampler, likeliest
from backends.onnx.binding import BoundGraph, Scores
from backends.onnx.embedding import EmbeddingTable
from backends.onnx.pace import Pace
from backends.onnx.rows import KeyValueRows, Row, contiguous
from backends.types import (
    EngineCapabilities,
    EngineError,
    EngineStatus,
    Failed,
    GenerateRequest,
    TokenEvent,
)

# Compaction copies no more than this in one step: some 10 ms.
MOVE_BYTES = 64 << 20
# How the runtime says it; it has no exception class of its own for this.
_OUT_OF_MEMORY = ("Failed to allocate memory", "bad_alloc")
logger = logging.getLogger(__name__)


class Seat:
    """A request that has a row."""

    def __init__(self, generation: Generation, row: Row, sampler: Sampler) -> None:
        self.generation = generation
        self.row = row
        self.sampler = sampler


class OnnxEngine:
    """`Engine` of backends.types; made by `backends.onnx.loading`."""

    def __init__(
        self,
        *,
        graph: BoundGraph,
        embedding: EmbeddingTable,
        rows: KeyValueRows,
        capabilities: EngineCapabilities,
    ) -> None:
        self.capabilities = capabilities
        self._graph: BoundGraph | None = graph
        self._embedding = embedding
        self._rows = rows
        self._pace = Pace()
        self._waiting: deque[tuple[Generation, Sampler]] = deque()
        self._prefilling: Seat | None = None
        self._decoding: list[Seat] = []
        self._closing: list[TokenEvent] = []
        self._decode_is_next = False
        self._steps = 0

    def add(self, request: GenerateRequest) -> None:
        request_id = request.request_id
        try:
            if self._graph is None:
                raise EngineError("internal", "the model has been unloaded")
            if self._drop(request_id) is not None:
                raise EngineError("invalid", "this request id is in use")
            self._waiting.append(self._accepted(request))
        except EngineError as error:
            self._closing.append(Failed(request_id=request_id, code=error.code, message=str(error)))

    def _accepted(self, request: GenerateRequest) -> tuple[Generation, Sampler]:
        capabilities = self.capabilities
        context, max_tokens = plan_limits(
            request, capabilities.context_length, capabilities.vocabulary
        )
        sampler = Sampler(
            request.sampling, newline_ids=request.newline_ids, history=request.prompt_ids
        )
        return Generation(request, context=context, max_tokens=max_tokens), sampler

    def has_work(self) -> bool:
        return bool(self._closing or self._waiting or self._prefilling or self._decoding)

    def step(self) -> list[TokenEvent]:
        if self._closing:
            events, self._closing = self._closing, []
            return events
        if not self.has_work():
            return []
        self._steps += 1
        if self._prefilling is None:
            self._admit()
        if self._prefilling is None or (self._decode_is_next and self._decoding):
            self._decode_is_next = False
            return self._decode()
        self._decode_is_next = True
        return self._prefill(self._prefilling)

    def cancel(self, request_id: str) -> None:
        generation = self._drop(request_id)
        if generation is not None:
            self._closing.append(generation.close("cancelled"))

    def _drop(self, request_id: str) -> Generation | None:
        """Forgets a request wherever it is and frees its row."""
        for entry in self._waiting:
            if entry[0].id == request_id:
                self._waiting.remove(entry)
                return entry[0]
        for seat in self._seats():
            if seat.generation.id == request_id:
                self._leave(seat)
                return seat.generation
        return None

    def _seats(self) -> list[Seat]:
        return [*self._decoding, *([self._prefilling] if self._prefilling else [])]

    def _leave(self, seat: Seat) -> None:
        self._rows.release(seat.row)
        if seat is self._prefilling:
            self._prefilling = None
        else:
            self._decoding.remove(seat)

    def _admit(self) -> None:
        """Gives the longest-waiting request a row, if one is free and the budget allows."""
        if not self._waiting:
            return
        generation, sampler = self._waiting[0]
        wanted = generation.prompt_length + generation.max_tokens
        row = self._rows.take(min(wanted, generation.context))
        if row is None:
            return
        self._waiting.popleft()
        generation.start()
        self._prefilling = Seat(generation, row, sampler)

    # ---- prefill ----

    def _prefill(self, seat: Seat) -> list[TokenEvent]:
        try:
            return self._prefill_chunk(seat)
        except Exception as error:  # whatever the runtime raises ends this request, not the loop
            logger.exception("prefill failed")
            self._leave(seat)
            return [_failure(seat, error)]

    def _prefill_chunk(self, seat: Seat) -> list[TokenEvent]:
        generation, begin = seat.generation, time.perf_counter()
        start = generation.prefilled
        left = generation.prompt_length - start
        chunk = self._pace.chunk(left, is_decoding=bool(self._decoding))
        is_last = chunk == left
        wanted = [chunk - 1] if is_last and generation.max_tokens > 0 else []
        embeddings = self._embedding.lookup(generation.ids[start : start + chunk])[None]
        scores = self._run(seat.row.index, embeddings, [start + chunk], wanted)
        seat.row.advance(chunk)
        generation.prefilled += chunk
        self._pace.saw_prefill(chunk, time.perf_counter() - begin)
        events: list[TokenEvent] = [generation.progress()]
        return events + self._start_decoding(seat, scores) if is_last else events

    def _start_decoding(self, seat: Seat, scores: Scores) -> list[TokenEvent]:
        seat.generation.finish_prefill()
        self._prefilling = None
        self._decoding.append(seat)
        if seat.generation.max_tokens > 0:
            return self._choose(seat, scores, 0)
        self._leave(seat)
        return [seat.generation.close("length")]

    # ---- decode ----

    def _decode(self) -> list[TokenEvent]:
        """One id for every decoding row, in one run where they are neighbours."""
        begin = time.perf_counter()
        rows = [seat.row for seat in self._decoding]
        self._rows.compact(rows, MOVE_BYTES)
        seats = {seat.row: seat for seat in self._decoding}
        events: list[TokenEvent] = []
        for run in contiguous(rows):
            events += self._decode_run([seats[row] for row in run])
        self._pace.saw_decode(time.perf_counter() - begin)
        return events

    def _decode_run(self, seats: list[Seat]) -> list[TokenEvent]:
        try:
            embeddings = self._embedding.lookup([seat.generation.ids[-1] for seat in seats])
            totals = [seat.row.length + 1 for seat in seats]
            first = seats[0].row.index
            scores = self._run(first, embeddings[:, None, :], totals, range(len(seats)))
        except Exception as error:  # ends the requests of this run, not the loop
            logger.exception("decode failed")
            for seat in seats:
                self._leave(seat)
            return [_failure(seat, error) for seat in seats]
        events: list[TokenEvent] = []
        for place, seat in enumerate(seats):
            seat.row.advance(1)
            events += self._choose(seat, scores, place)
        return events

    def _run(
        self, first: int, embeddings: np.ndarray, totals: Sequence[int], wanted: Sequence[int]
    ) -> Scores:
        if self._graph is None:
            raise EngineError("internal", "the model has been unloaded")
        return self._graph.run(first, np.ascontiguousarray(embeddings), totals, wanted)

    # ---- the next id ----

    def _choose(self, seat: Seat, scores: Scores, place: int) -> list[TokenEvent]:
        """Samples from one line of the scores; the row leaves when that ends the answer."""
        try:
            logits, lse = scores.logits[place], float(scores.lse[place])
            ids, values = scores.ids[place], scores.values[place]
            token_id = seat.sampler.sample_top(ids, values, lse, logits.size)
            if token_id is None:
                token_id = seat.sampler.sample(logits)
            seat.sampler.accept(token_id)
            logprob, top = _logprobs(scores, place, token_id, seat.generation.request.top_logprobs)
            events = seat.generation.accept(token_id, logprob, top)
        except Exception as error:  # ends this request, not the loop
            logger.exception("sampling failed")
            self._leave(seat)
            return [_failure(seat, error)]
        if seat.generation.has_ended:
            self._leave(seat)
        return events

    # ---- the rest of the contract ----

    def embed(self, batch: Sequence[tuple[int, ...]]) -> list[bytes]:
        raise EngineError("unsupported", "this model is not served for embeddings yet")

    def status(self) -> EngineStatus:
        return EngineStatus(
            active=len(self._seats()),
            waiting=len(self._waiting),
            kv_bytes=self._rows.touched_bytes(),
            steps=self._steps,
        )

    def close(self) -> None:
        """Frees everything; what was in flight is reported as cancelled by the next `step`."""
        if self._graph is None:
            return
        living = [entry[0].id for entry in self._waiting]
        living += [seat.generation.id for seat in self._seats()]
        for request_id in living:
            self.cancel(request_id)
        self._graph.close()
        self._graph = None
        self._rows.close()


def _logprobs(
    scores: Scores, place: int, token_id: int, wanted: int
) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    """Natural-log probabilities before any filter: of the chosen id and of the likeliest ones."""
    if wanted < 0:
        return None, ()
    lse = float(scores.lse[place])
    logits = scores.logits[place]
    ids, values = scores.ids[place][:wanted], scores.values[place][:wanted]
    if wanted > ids.size:
        ids, values = likeliest(logits, wanted)
    top = tuple((int(i), float(v) - lse) for i, v in zip(ids, values, strict=True))
    return float(logits[token_id]) - lse, top


def _failure(seat: Seat, error: Exception) -> Failed:
    if isinstance(error, EngineError):
        return seat.generation.fail(error.code, str(error))
    message = str(error)
    has_memory = not any(sign in message for sign in _OUT_OF_MEMORY)
    code = "internal" if has_memory else "memory"
    return seat.generation.fail(code, f"the model run failed: {message}")
