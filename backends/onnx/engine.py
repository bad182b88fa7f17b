"""The engine on ONNX Runtime: one loaded model, many requests on rows of one KV cache.

Owns the order of things: requests wait, take a row (maybe one that holds the beginning of their
prompt already), are prefilled chunk by chunk (one row at a time, on a view of its row), then decode
together in as few runs as their rows allow. While some decode and others prefill, the two alternate.
A row that decodes alone is run over guesses too. A failing run costs the requests that were in it
and nothing else. Never called from two threads; request ids are unique among the living (a second
request of the same id ends both with one `Failed`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np

from backends.engine.applicant import Applicant
from backends.engine.borders import border_before
from backends.engine.contract import EngineCapabilities, EngineStatus
from backends.engine.pace import EXACT_CHUNK, Pace, plan_fixed_chunk
from backends.engine.positions import layout_of
from backends.engine.request_loop import RequestLoop
from backends.engine.speculation import RunCosts
from backends.image_span import ImageSpan
from backends.onnx.binding import BoundGraph
from backends.onnx.embedding import EmbeddingTable
from backends.onnx.image_tables import ImageTables
from backends.onnx.images import ImageInputs, causal_left, open_span
from backends.onnx.prefix_cache import PrefixCache
from backends.onnx.rows import KeyValueRows, contiguous
from backends.onnx.scores import Scores, raw_logprobs
from backends.onnx.seat import Seat
from backends.onnx.vectors import VectorSource
from backends.types import (
    EngineError,
    Failed,
    GenerateRequest,
    TokenEvent,
)

# Copies of KV rows take no more than this in one step: some 10 ms.
MOVE_BYTES = 64 << 20
# How the runtime says it; it has no exception class of its own for this.
_OUT_OF_MEMORY = ("Failed to allocate memory", "bad_alloc")
logger = logging.getLogger(__name__)


class OnnxEngine(RequestLoop[Seat]):
    """`Engine` of backends.types; made by `backends.onnx.loading`."""

    def __init__(
        self,
        *,
        graph: BoundGraph,
        embedding: EmbeddingTable,
        images: ImageInputs,
        rows: KeyValueRows,
        cache: PrefixCache,
        capabilities: EngineCapabilities,
        pace: Pace | None = None,
    ) -> None:
        super().__init__(capabilities)
        self._graph: BoundGraph | None = graph
        self._embedding = embedding
        self._images = images
        self._rows = rows
        self._cache = cache
        self._pace = pace or Pace()
        self._costs = RunCosts()
        self._decoding: list[Seat] = []

    def _require_loaded(self) -> None:
        self._loaded()

    def _loaded(self) -> BoundGraph:
        if self._graph is None:
            raise EngineError("internal", "the model has been unloaded")
        return self._graph

    def _check_images(self, request: GenerateRequest) -> None:
        self._images.check(request)

    def _decoding_seats(self) -> list[Seat]:
        return self._decoding

    def _leave(self, seat: Seat, *, has_failed: bool = False) -> None:
        """What the row holds is kept for others, unless a run went wrong in it."""
        seats = self._prefilling if seat in self._prefilling else self._decoding
        seats.remove(seat)
        if has_failed:
            self._cache.drop(seat.row)
        else:
            self._cache.keep(seat.row, seat.generation.request, seat.generation.ids)

    # ---- admission ----

    def _admit(self) -> None:
        """Gives the longest waiting requests rows, while there are any and the budget allows."""
        while self._waiting and len(self._seats()) < self.capabilities.rows:
            applicant = self._waiting[0]
            seats = self._seats()
            if seats and (applicant.is_alone or any(seat.is_alone for seat in seats)):
                return
            seat = self._seated(applicant)
            if seat is None:
                return
            self._waiting.popleft()
            self._prefilling.append(seat)

    def _seated(self, applicant: Applicant) -> Seat | None:
        generation = applicant.generation
        if applicant.is_alone:
            self._cache.clear()  # numbers of other runs must not come into it
        seating = self._cache.seat(
            generation.request, applicant.wanted_positions, exact=applicant.is_exact
        )
        if seating is None:
            return None
        generation.start()
        generation.prefilled = generation.cached = seating.row.length
        return Seat(applicant, seating, self._images.tables(generation.request))

    # ---- prefill ----

    def _prefill(self, seat: Seat) -> list[TokenEvent]:
        try:
            return self._copy_shared(seat) if seat.source else self._prefill_chunk(seat)
        except Exception as error:  # whatever the runtime raises ends this request, not the loop
            logger.exception("prefill failed")
            self._leave(seat, has_failed=True)
            return [_failure(seat, error)]

    def _copy_shared(self, seat: Seat) -> list[TokenEvent]:
        """A piece of what another row holds already; what that has lost meanwhile is prefilled."""
        source, generation = seat.source, seat.generation
        if source and self._cache.holds(source, generation.ids[: seat.shared]):
            self._rows.copy_prefix(source, seat.row, seat.shared, MOVE_BYTES)
            seat.source = source if seat.row.length < seat.shared else None
        else:
            seat.source = None
            # What was copied until then may end within an image that is one run.
            border = border_before(generation.request.images, seat.row.length)
            self._rows.roll_back(seat.row, border)
        generation.prefilled = generation.cached = seat.row.length
        return [generation.progress()] if seat.source else self._prefill_chunk(seat)

    def _chunk(self, seat: Seat) -> int:
        """Up to the next image whose positions see each other; such a one is a chunk of its own."""
        images = seat.generation.request.images
        left = causal_left(images, seat.generation.prefilled, seat.left)
        if seat.is_alone:
            return plan_fixed_chunk(left, EXACT_CHUNK)
        return self._pace.chunk(left, is_decoding=bool(self._decoding))

    def _prefill_chunk(self, seat: Seat) -> list[TokenEvent]:
        generation = seat.generation
        span = open_span(generation.request.images, generation.prefilled)
        if span is not None:
            return self._prefill_open(seat, span)
        start, chunk, begin = generation.prefilled, self._chunk(seat), time.perf_counter()
        is_last = chunk == seat.left
        wanted = [chunk - 1] if is_last and generation.max_tokens > 0 else []
        images, end = generation.request.images, start + chunk
        embeddings = self._images.embeddings(generation.ids, start, end, images)[None]
        scores = self._run(seat.row.index, embeddings, [end], wanted, seat.tables)
        self._pace.saw_prefill(chunk, time.perf_counter() - begin)
        return self._fed(seat, chunk, scores if is_last else None)

    def _prefill_open(self, seat: Seat, span: ImageSpan) -> list[TokenEvent]:
        """One image in one run; its last position sees all of it in a causal run too, for scores."""
        generation, end = seat.generation, span.start + span.length
        images, graph = generation.request.images, self._loaded()
        embeddings = self._images.embeddings(generation.ids, span.start, end, images)
        graph.reserve(end)
        self._images.bidirectional.run(seat.row, embeddings, layout_of(images))
        scores = None
        if span.length == seat.left:
            wanted = [0] if generation.max_tokens > 0 else []
            scores = self._run(seat.row.index, embeddings[None, -1:], [end], wanted, seat.tables)
        return self._fed(seat, span.length, scores)

    def _fed(self, seat: Seat, count: int, scores: Scores | None) -> list[TokenEvent]:
        """A chunk is in the row; `scores` where it was the last."""
        seat.row.advance(count)
        seat.generation.prefilled += count
        events: list[TokenEvent] = [] if seat.is_refilled else [seat.generation.progress()]
        return events + self._start_decoding(seat, scores) if scores is not None else events

    def _start_decoding(self, seat: Seat, scores: Scores) -> list[TokenEvent]:
        if not seat.is_refilled:
            seat.generation.finish_prefill()
        self._cache.publish(seat.row, seat.generation.request, seat.generation.ids)
        self._prefilling.remove(seat)
        self._decoding.append(seat)
        if seat.generation.max_tokens > 0:
            return self._choose(seat, scores, 0)
        self._leave(seat)
        return [seat.generation.close("length")]

    def _refill(self, seat: Seat) -> None:
        """Ids have left the context: those behind them get other positions and are fed anew.

        Costs the prefill of half a context. Keys are rotated to where they stand, and values depend
        on the ids that are gone, so nothing cheaper gives what the model would say to these ids.
        """
        seat.generation.is_shifted = False
        seat.is_refilled = True
        seat.forget_guesser()
        self._cache.withdraw(seat.row)
        self._rows.roll_back(seat.row, seat.generation.prefilled)
        seat.generation.prefilled = seat.row.length
        self._decoding.remove(seat)
        self._prefilling.append(seat)

    # ---- decode ----

    def _decode(self) -> list[TokenEvent]:
        """One id for every decoding row, in one run where they are neighbours and turn alike."""
        if not self._decoding:
            return []
        begin = time.perf_counter()
        may_guess = not (self._decoding[0].is_exact or self._rows.states)
        if may_guess and len(self._seats()) == 1:
            events = self._decode_alone(self._decoding[0])
        else:
            events = self._decode_together()
        self._pace.saw_decode(time.perf_counter() - begin)
        return events

    def _decode_together(self) -> list[TokenEvent]:
        seats = {seat.row: seat for seat in self._decoding}
        alike = [row for row, seat in seats.items() if seat.tables is None]
        self._rows.compact(alike, MOVE_BYTES)
        events: list[TokenEvent] = []
        apart = [[row] for row, seat in seats.items() if seat.tables is not None]
        for run in contiguous(alike) + apart:
            events += self._decode_run([seats[row] for row in run])
        return events

    def _decode_run(self, seats: list[Seat]) -> list[TokenEvent]:
        try:
            embeddings = self._embedding.lookup([seat.generation.ids[-1] for seat in seats])
            totals = [seat.row.length + 1 for seat in seats]
            first = seats[0].row.index
            tables, wanted = seats[0].tables, range(len(seats))
            scores = self._run(first, embeddings[:, None, :], totals, wanted, tables)
        except Exception as error:  # ends the requests of this run, not the loop
            logger.exception("decode failed")
            return self._failed_run(seats, error)
        events: list[TokenEvent] = []
        for place, seat in enumerate(seats):
            seat.forget_guesser()
            seat.row.advance(1)
            events += self._choose(seat, scores, place)
        return events

    def _failed_run(self, seats: list[Seat], error: Exception) -> list[TokenEvent]:
        for seat in seats:
            self._leave(seat, has_failed=True)
        return [_failure(seat, error) for seat in seats]

    def _decode_alone(self, seat: Seat) -> list[TokenEvent]:
        """The last id and what may follow it in one run; every place is sampled as ever."""
        generation, guesser, begin = seat.generation, seat.guesser(), time.perf_counter()
        answer_left = generation.max_tokens - generation.sampled
        room = generation.context - len(generation.ids)
        guesses = guesser.guesses(self._costs, min(room, answer_left) - 1)
        length = seat.row.length + 1 + len(guesses)
        try:
            embeddings = self._embedding.lookup([generation.ids[-1], *guesses])[None]
            wanted = range(1 + len(guesses))
            scores = self._run(seat.row.index, embeddings, [length], wanted, seat.tables)
        except Exception as error:  # ends this request, not the loop
            logger.exception("decode failed")
            return self._failed_run([seat], error)
        self._costs.saw(1 + len(guesses), time.perf_counter() - begin)
        return self._verify(seat, guesses, scores)

    def _verify(self, seat: Seat, guesses: list[int], scores: Scores) -> list[TokenEvent]:
        """Samples place by place, as long as what was guessed is what is sampled."""
        generation = seat.generation
        events: list[TokenEvent] = []
        sampled: list[int] = []
        for place, guess in enumerate([*guesses, None]):
            seat.row.advance(1, written=1 + len(guesses))
            events += self._choose(seat, scores, place)
            if generation.has_ended or seat in self._prefilling:
                return events
            sampled.append(generation.ids[-1])
            if sampled[-1] != guess:
                break
        seat.guesser().saw(sampled, len(guesses), self._costs)
        return events

    def _run(
        self,
        first: int,
        embeddings: np.ndarray,
        totals: Sequence[int],
        wanted: Sequence[int],
        tables: ImageTables | None = None,
    ) -> Scores:
        return self._loaded().run(first, np.ascontiguousarray(embeddings), totals, wanted, tables)

    # ---- the next id ----

    def _choose(self, seat: Seat, scores: Scores, place: int) -> list[TokenEvent]:
        """Samples from one line of the scores; the row leaves when that ends the answer."""
        generation, sampler = seat.generation, seat.sampler
        try:
            lse = float(scores.lse[place])
            ids, values = scores.ids[place], scores.values[place]
            token_id = sampler.sample_top(ids, values, lse, scores.vocabulary)
            if token_id is None:
                token_id = sampler.sample(scores.logits[place])
            if token_id not in generation.request.end_ids:
                sampler.accept(token_id)
            logprob, top = raw_logprobs(scores, place, token_id, generation.request.top_logprobs)
            events = generation.accept(token_id, logprob, top)
        except Exception as error:  # ends this request, not the loop
            logger.exception("sampling failed")
            self._leave(seat, has_failed=True)
            return [_failure(seat, error)]
        if generation.has_ended:
            self._leave(seat)
        elif generation.is_shifted:
            self._refill(seat)
        return events

    # ---- the rest of the contract ----

    def embed(self, batch: Sequence[tuple[int, ...]]) -> list[bytes]:
        """What the head would be given at the last id of each text; each takes a row for a while."""
        if not self.capabilities.embed or self._graph is None:
            raise EngineError("unsupported", "this model cannot make embeddings")
        source = VectorSource(self._graph, self._embedding, self._cache)
        return [source.vector(ids, self.capabilities) for ids in batch]

    def rest(self) -> bool:
        """`Rests`: what is kept of finished requests goes to disk, where that is asked for."""
        return self._graph is not None and self._cache.rest()

    def status(self) -> EngineStatus:
        return EngineStatus(
            active=len(self._seats()),
            waiting=len(self._waiting),
            kv_bytes=self._rows.touched_bytes(),
            steps=self._steps,
            cached_bytes=self._rows.idle_bytes(),
        )

    def close(self) -> None:
        """Frees everything; what was in flight is reported as cancelled by the next `step`."""
        if self._graph is None:
            return
        self.cancel_all()
        self._cache.clear()
        self._graph.close()
        self._graph = None
        self._images.bidirectional.close()
        self._rows.close()


def _failure(seat: Seat, error: Exception) -> Failed:
    if isinstance(error, EngineError):
        return seat.generation.fail(error.code, str(error))
    message = str(error)
    has_memory = not any(sign in message for sign in _OUT_OF_MEMORY)
    code = "internal" if has_memory else "memory"
    return seat.generation.fail(code, f"the model run failed: {message}")
