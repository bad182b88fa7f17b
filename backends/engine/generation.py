"""One request on its way through an engine: its ids, its limits, its clocks, its one ending.

Every engine keeps its requests as `Generation`s and makes its events through them, so that limits,
counts and the promise of exactly one `Finished` or `Failed` are the same whatever the runtime.
"""

from __future__ import annotations

import time

from backends.engine.images import check_images, image_positions
from backends.types import (
    EngineError,
    Failed,
    Finished,
    FinishReason,
    GenerateRequest,
    Prefilled,
    Sampled,
    TokenEvent,
    Usage,
)

TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; shorten the "
    "prompt, adjust the context length in settings, or use a model with a longer context length"
)
CONTEXTS_PER_ANSWER = 10


# Fewer ids than this may always go when a context is shifted, whatever is to be kept.
_LEAST_SHIFTED = 4


def plan_shift(held: int, keep: int) -> tuple[int, int]:
    """(first id to go, first id to stay) of `held` ids, which fill their context.

    As the field does it: half of what need not be kept, at least one id. contract.md §2.9.
    """
    kept = max(0, min(keep, held - _LEAST_SHIFTED))
    return kept, kept + max(1, (held - kept) // 2)


def plan_limits(
    request: GenerateRequest, capacity: int, vocabulary: int, image_width: int = 0
) -> tuple[int, int]:
    """(ids the row may hold, ids that may be sampled) for a row of `capacity` ids.

    Raises EngineError: "invalid" for ids that the model has not and images that `check_images` does
    not take, "too_long" for a prompt that leaves no room for an answer.
    """
    context = min(max(request.context_length, 1), capacity)
    prompt = request.prompt_ids
    if not prompt:
        raise EngineError("invalid", "the prompt is empty")
    check_images(request, image_width)
    foreign = sum(token_id < 0 for token_id in prompt) if min(prompt) < 0 else 0
    if foreign != image_positions(request.images) or max(prompt) >= vocabulary:
        raise EngineError("invalid", f"the prompt has ids outside 0..{vocabulary - 1}")
    if len(prompt) > context - 1:
        raise EngineError("too_long", TOO_LONG)
    bound = CONTEXTS_PER_ANSWER * context
    return context, bound if request.max_tokens < 0 else min(request.max_tokens, bound)


class Generation:
    """State of one live request. `ids` are prompt and answer, as far as the context holds them.

    `prefilled` of them have been fed; `is_shifted`: ids were dropped, and those behind `prefilled`
    must be fed anew before the next one is sampled. The engine resets it.
    """

    def __init__(self, request: GenerateRequest, *, context: int, max_tokens: int) -> None:
        self.request = request
        self.context = context
        self.max_tokens = max_tokens
        self.ids = list(request.prompt_ids)
        self.prefilled = 0
        self.cached = 0
        self.sampled = 0
        self.dropped = 0
        self.is_shifted = False
        self.has_ended = False
        self._added_ns = time.perf_counter_ns()
        self._started_ns = 0
        self._answered_ns = 0
        if request.constraint is not None:
            request.constraint.limit(self._most_ids())

    def _most_ids(self) -> int:
        """Ids that can be sampled before `is_full` says so."""
        if self._may_shift:
            return self.max_tokens
        return min(self.max_tokens, self.context - self.prompt_length)

    @property
    def _may_shift(self) -> bool:
        """An image whose positions moved would have to be seen again: such an answer ends instead."""
        return self.request.shift and not self.request.images

    @property
    def id(self) -> str:
        return self.request.request_id

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt_ids)

    def start(self) -> None:
        """It has a row now: the clock of its prefill runs."""
        self._started_ns = time.perf_counter_ns()

    def progress(self) -> Prefilled:
        return Prefilled(
            request_id=self.id, done=self.prefilled, total=self.prompt_length, cached=self.cached
        )

    def finish_prefill(self) -> None:
        self._answered_ns = time.perf_counter_ns()

    def accept(
        self, token_id: int, logprob: float | None, top: tuple[tuple[int, float], ...]
    ) -> list[TokenEvent]:
        """Takes a sampled id; the last event is a `Finished` when it ends the answer."""
        self.sampled += 1
        self.ids.append(token_id)
        if token_id in self.request.end_ids:
            return [self.close("stop")]
        event = Sampled(request_id=self.id, token_id=token_id, logprob=logprob, top=top)
        if self.is_full():
            return [event, self.close("length")]
        if len(self.ids) >= self.context:
            self._shift()
        return [event]

    def _shift(self) -> None:
        begin, end = plan_shift(len(self.ids), self.request.keep_length)
        del self.ids[begin:end]
        self.dropped += end - begin
        self.prefilled = begin
        self.is_shifted = True

    def is_full(self) -> bool:
        """No further id may be sampled, or there is no room to feed the last one."""
        is_at_end = len(self.ids) >= self.context and not self._may_shift
        return is_at_end or self.sampled >= self.max_tokens

    def close(self, reason: FinishReason) -> Finished:
        self.has_ended = True
        return Finished(request_id=self.id, reason=reason, usage=self._usage())

    def fail(self, code: str, message: str) -> Failed:
        self.has_ended = True
        return Failed(request_id=self.id, code=code, message=message)

    def _usage(self) -> Usage:
        now = time.perf_counter_ns()
        started = self._started_ns or now
        answered = self._answered_ns or now
        constraint = self.request.constraint
        return Usage(
            prompt_tokens=self.prompt_length,
            cached_tokens=self.cached,
            dropped_tokens=self.dropped,
            completion_tokens=self.sampled,
            prefill_ns=answered - started,
            decode_ns=now - answered,
            queued_ns=started - self._added_ns,
            forced_tokens=constraint.forced if constraint is not None else 0,
        )
