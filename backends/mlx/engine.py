"""The engine on MLX: one loaded model, many requests, each with caches of its own or of a batch.

Owns the order of things: requests wait, get caches (maybe ones that hold the beginning of their prompt
already), are fed all of their prompt but the last id chunk by chunk, then decode: one run feeds every
row of a group its last id. Where batches pay, rows of like length share a group; rows that must not
depend on others stay alone, and so do those whose caches mlx-lm cannot batch. While some decode and
others prefill, the two alternate. A failing run costs the requests that were in it and what is kept;
two in a row end the engine. Everything happens on the thread that loaded it: MLX binds arrays to it.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Sequence

import mlx.core as mx
from mlx import nn

from backends.engine.applicant import Applicant
from backends.engine.borders import border_after, border_before, last_grid_border, next_grid_border
from backends.engine.contract import EngineCapabilities, EngineStatus
from backends.engine.pace import EXACT_CHUNK, Pace
from backends.engine.request_loop import RequestLoop
from backends.mlx import mlx_lm_internals as internals
from backends.mlx.image_runs import ImageRuns, fed_ids
from backends.mlx.key_values import RowBytes
from backends.mlx.prefix_cache import MIN_SHARED, PrefixCache
from backends.mlx.scores import Line, read_scores
from backends.mlx.seat import Group, Seat, may_batch, padded_positions
from backends.mlx.vectors import last_hidden
from backends.types import (
    EngineError,
    GenerateRequest,
    TokenEvent,
)

# How the runtime says it; it has no exception class of its own for this.
_OUT_OF_MEMORY = ("malloc", "bad_alloc", "memory")
MAX_FAILURES = 2
logger = logging.getLogger(__name__)


class MlxEngine(RequestLoop[Seat]):
    """`Engine` of backends.types; made by `backends.mlx.loading`.

    `has_batches`: rows share runs. Else every row has its own, and its numbers depend on no other.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        row_bytes: RowBytes,
        budget_bytes: int,
        capabilities: EngineCapabilities,
        has_batches: bool,
        cache: PrefixCache,
        pace: Pace,
        images: ImageRuns,
    ) -> None:
        super().__init__(capabilities)
        self._model: nn.Module | None = model
        self._row_bytes = row_bytes
        self._budget_bytes = budget_bytes
        self._has_batches = has_batches
        self._cache = cache
        self._pace = pace
        self._images = images
        self._groups: list[Group] = []
        self._failures = {"prefill": 0, "decode": 0}  # in a row, of each kind
        self._thread = threading.get_ident()

    def _require_loaded(self) -> None:
        self._loaded()

    def _loaded(self) -> nn.Module:
        if threading.get_ident() != self._thread:
            raise EngineError("internal", "this engine belongs to the thread that loaded it")
        if self._model is None:
            raise EngineError("internal", "the model has been unloaded")
        return self._model

    def _decoding_seats(self) -> list[Seat]:
        return [seat for group in self._groups for seat in group.seats]

    def _leave(self, seat: Seat, *, has_failed: bool = False) -> None:
        """What the caches hold is kept for others, unless a run went wrong in them."""
        self._cache.withdraw(seat)
        self._unseat(seat, is_wanted=not has_failed and seat.length >= MIN_SHARED)
        caches, seat.caches = seat.caches, []
        if caches and not has_failed:
            self._cache.keep(seat, caches, self._budget_bytes - self._promised_bytes())

    def _unseat(self, seat: Seat, *, is_wanted: bool) -> None:
        """Out of prefill or of its group; with its caches where they are wanted."""
        group = seat.group
        if group is None:
            self._prefilling.remove(seat)
            return
        group.leave(seat, is_wanted=is_wanted)
        if not group.seats:
            self._groups.remove(group)

    # ---- admission ----

    def _check_images(self, request: GenerateRequest) -> None:
        self._images.admit(request)

    def _admit(self) -> None:
        """Seats the longest waiting requests, while there is a row and the budget allows."""
        while self._waiting and len(self._seats()) < self.capabilities.rows:
            applicant = self._waiting[0]
            wanted = self._row_bytes.of(applicant.wanted_positions)
            left = self._budget_bytes - self._promised_bytes()
            if self._seats() and wanted > left:
                return
            self._waiting.popleft()
            self._prefilling.append(self._seated(applicant))
            self._cache.make_room(0, left - wanted)

    def _promised_bytes(self) -> int:
        """What the seats may come to take, and what batches waste on rows of unlike length."""
        rows = sum(self._row_bytes.of(seat.promised_positions) for seat in self._seats())
        padded = sum(
            padded_positions([seat.length for seat in group.seats]) for group in self._groups
        )
        return rows + padded * self._row_bytes.position

    def _seated(self, applicant: Applicant) -> Seat:
        generation = applicant.generation
        generation.start()
        is_quiet = not self._seats()
        hit = self._cache.take(generation.request, exact=applicant.is_exact, is_quiet=is_quiet)
        if hit is None:
            return Seat(applicant, internals.make_caches(self._loaded()), 0, 0)
        generation.prefilled = generation.cached = hit.length
        return Seat(applicant, hit.caches, hit.length, hit.exact_length)

    # ---- prefill ----

    def _prefill(self, seat: Seat) -> list[TokenEvent]:
        try:
            if seat.left > seat.together:
                self._feed_chunk(seat)
        except Exception as error:  # whatever the runtime raises ends this request, not the loop
            logger.exception("prefill failed")
            return self._failed_run("prefill", [seat], error)
        if seat.left > seat.together:
            return [] if seat.is_refilled else [seat.generation.progress()]
        return self._start_decoding(seat)

    def _feed_chunk(self, seat: Seat) -> None:
        """All but the last id of a prompt: that one is fed by the run that asks what follows it."""
        generation, begin = seat.generation, time.perf_counter()
        start, chunk = seat.length, self._chunk(seat)
        ids = fed_ids(generation.ids[start : start + chunk])
        with self._images.feeding([seat], chunk):
            self._loaded()(ids, cache=seat.caches)  # logits are never computed
        internals.evaluate(seat.caches)
        self._failures["prefill"] = 0
        seat.advance(chunk)
        generation.prefilled = seat.length
        self._pace.saw_prefill(chunk, time.perf_counter() - begin)
        if seat.length == self._snapshot_place(seat):
            caches = internals.prefix_of(seat.caches, seat.length, seat.length)
            self._cache.keep(seat, caches, self._budget_bytes - self._promised_bytes())

    def _chunk(self, seat: Seat) -> int:
        """Ends where the prompt may be cut."""
        start, wanted = seat.length, seat.left - seat.together
        place = self._snapshot_place(seat)
        if start < place:
            wanted = min(wanted, place - start)
        if seat.is_exact:
            return min(wanted, next_grid_border(seat.images, start, EXACT_CHUNK) - start)
        end = start + self._pace.chunk(wanted, is_decoding=bool(self._groups))
        before = border_before(seat.images, end)
        return (before if before > start else border_after(seat.images, end)) - start

    def _snapshot_place(self, seat: Seat) -> int:
        """Where others may go on from, next: only where positions cannot be taken back. 0: nowhere."""
        request, prompt = seat.generation.request, seat.generation.prompt_length
        if seat.is_refilled or not seat.caches or internals.can_trim(seat.caches):
            return 0
        last = border_before(seat.images, prompt - 2)
        if seat.is_exact:
            return last_grid_border(seat.images, last, EXACT_CHUNK)
        is_before = MIN_SHARED <= request.system_length < last
        is_ahead = is_before and seat.length <= request.system_length
        return border_before(seat.images, request.system_length) if is_ahead else last

    def _start_decoding(self, seat: Seat) -> list[TokenEvent]:
        generation = seat.generation
        events: list[TokenEvent] = []
        if not seat.is_refilled:
            generation.prefilled = generation.prompt_length
            generation.finish_prefill()
            events.append(generation.progress())
        self._cache.publish(seat)
        if generation.max_tokens > 0:
            self._prefilling.remove(seat)
            self._groups.append(Group(seat))
            return events
        self._leave(seat)
        return [*events, generation.close("length")]

    def _refill(self, seat: Seat) -> None:
        """Ids have left the context: those behind them get other positions and are fed anew.

        Costs the prefill of half a context. Keys are rotated to where they stand, and values depend
        on the ids that are gone, so nothing cheaper gives what the model would say to these ids.
        """
        generation = seat.generation
        generation.is_shifted = False
        seat.is_refilled = True
        self._cache.withdraw(seat)
        self._unseat(seat, is_wanted=True)
        if not seat.roll_back(generation.prefilled):
            seat.caches = internals.make_caches(self._loaded())
            seat.length = seat.exact_length = 0
        generation.prefilled = seat.length
        self._prefilling.append(seat)

    # ---- decode ----

    def _decode(self) -> list[TokenEvent]:
        """One id for every row that decodes, in one run a group."""
        if not self._groups:
            return []
        begin = time.perf_counter()
        if self._has_batches:
            self._gather()
        events: list[TokenEvent] = []
        for group in list(self._groups):
            events += self._decode_group(group)
        self._pace.saw_decode(time.perf_counter() - begin)
        return events

    def _gather(self) -> None:
        """Rows that run by themselves join a batch that has room for their length."""
        for group in list(self._groups):
            if len(group.seats) > 1 or not self._may_join(group):
                continue
            seat = group.seats[0]
            for other in self._groups:
                if other is not group and self._may_join(other) and self._fits(other, seat):
                    other.join(seat)
                    self._groups.remove(group)
                    break

    def _may_join(self, group: Group) -> bool:
        seat = group.seats[0]
        if len(group.seats) > 1:
            return True
        if group.ends_with_image:
            return False
        return not seat.is_alone and seat.length > 0 and internals.can_batch(group.caches)

    def _fits(self, group: Group, seat: Seat) -> bool:
        lengths = [each.length for each in group.seats]
        more = padded_positions([*lengths, seat.length]) - padded_positions(lengths)
        room = self._budget_bytes - self._promised_bytes() - self._cache.nbytes
        return may_batch([*lengths, seat.length]) and more * self._row_bytes.position <= max(
            room, 0
        )

    def _decode_group(self, group: Group) -> list[TokenEvent]:
        seats = list(group.seats)
        try:
            count = len(seats[0].unfed)
            with self._images.feeding(seats, count):
                logits = group.run(self._loaded())
            lines = read_scores(logits, is_greedy=all(seat.is_greedy for seat in seats))
        except Exception as error:  # ends the requests of this run, not the loop
            logger.exception("decode failed")
            return self._failed_run("decode", seats, error)
        self._failures["decode"] = 0
        events: list[TokenEvent] = []
        for seat, line in zip(seats, lines, strict=True):
            seat.advance(count)
            events += self._choose(seat, line)
        return events

    def _failed_run(self, kind: str, seats: Sequence[Seat], error: Exception) -> list[TokenEvent]:
        """What the runtime holds is doubtful now: all that is kept goes too. Twice in a row is the end."""
        for seat in seats:
            self._leave(seat, has_failed=True)
        self._failures[kind] += 1
        failure = _explained(error)
        if self._failures[kind] >= MAX_FAILURES:
            raise EngineError(failure.code, f"two runs failed one after the other: {failure}")
        self._cache.clear()
        mx.clear_cache()
        return [seat.generation.fail(failure.code, str(failure)) for seat in seats]

    # ---- the next id ----

    def _choose(self, seat: Seat, line: Line) -> list[TokenEvent]:
        """Samples from one line of the scores; the row leaves when that ends the answer."""
        generation, sampler = seat.generation, seat.sampler
        try:
            token_id = line.sample(sampler)
            if token_id not in generation.request.end_ids:
                sampler.accept(token_id)
            logprob, top = line.logprobs(token_id, generation.request.top_logprobs)
            events = generation.accept(token_id, logprob, top)
        except Exception as error:  # ends this request, not the loop
            logger.exception("sampling failed")
            self._leave(seat, has_failed=True)
            failure = _explained(error)
            return [generation.fail(failure.code, str(failure))]
        if generation.has_ended:
            self._leave(seat)
        elif generation.is_shifted:
            self._refill(seat)
        return events

    # ---- the rest of the contract ----

    def embed(self, batch: Sequence[tuple[int, ...]]) -> list[bytes]:
        """What the head would be given at the last id of each text; nothing of it is kept."""
        if not self.capabilities.embed:
            raise EngineError("unsupported", "this model cannot make embeddings")
        model = self._loaded()
        return [last_hidden(model, ids, self.capabilities) for ids in batch]

    def rest(self) -> bool:
        """`Rests`: what is kept of finished requests goes to disk, where that is asked for."""
        return self._model is not None and self._cache.rest()

    def status(self) -> EngineStatus:
        seats = self._seats()
        kv_bytes = sum(group.nbytes() for group in self._groups)
        kv_bytes += sum(internals.nbytes(seat.caches) for seat in self._prefilling)
        return EngineStatus(
            active=len(seats),
            waiting=len(self._waiting),
            kv_bytes=kv_bytes,
            steps=self._steps,
            cached_bytes=self._cache.nbytes,
        )

    def close(self) -> None:
        """Frees everything; what was in flight is reported as cancelled by the next `step`."""
        if self._model is None:
            return
        self._loaded()
        self.cancel_all()
        self._cache.close()
        self._images.close()
        end_ranks = getattr(self._model, "close", None)
        if end_ranks is not None:
            end_ranks()
        self._model = None
        gc.collect()
        mx.clear_cache()


def _explained(error: Exception) -> EngineError:
    if isinstance(error, EngineError):
        return error
    message = str(error)
    is_memory = any(sign in message for sign in _OUT_OF_MEMORY)
    code = "memory" if is_memory else "internal"
    return EngineError(code, f"the model run failed: {message}")
