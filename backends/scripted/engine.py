"""A deterministic engine that replays a script, for tests of everything around an engine.

It is no model: ids are the bytes of the text (plus 256 for the beginning and 257 for the end), the
prompt chooses a rule of `script.json`, and sampling settings mean nothing. Of a constrained answer it
leaves out what the constraint forbids. It keeps the `Engine` contract to the letter, so that what
passes on it is about the API and not about a runtime.
"""

from __future__ import annotations

import os
import signal
import struct
import time
from collections import Counter, deque
from collections.abc import Sequence

from backends.engine.contract import EngineCapabilities, EngineStatus
from backends.engine.generation import Generation, plan_limits
from backends.engine.images import ANY_WIDTH
from backends.scripted.script import EOS_ID, VOCABULARY, Fault, Rule, Script
from backends.types import (
    Constraint,
    EngineError,
    Failed,
    GenerateRequest,
    TokenEvent,
)

PREFILL_CHUNK = 256
BYTES_PER_ID = 1024  # what it claims a position costs
# A step with nothing due yet sleeps this long at most, so that a cancel is seen soon.
MAX_NAP_SECONDS = 0.01


class Recital:
    """One answer under way: what is still to be said, and when the next piece is due."""

    def __init__(self, generation: Generation, rule: Rule) -> None:
        self.generation = generation
        self.rule = rule
        self.pieces = deque(rule.pieces)
        self.due = time.monotonic() + rule.prefill_seconds

    def has_fault(self) -> bool:
        return bool(self.rule.fault) and (
            len(self.rule.pieces) - len(self.pieces) >= self.rule.fault_after
        )


class ScriptedEngine:
    def __init__(self, script: Script, *, rows: int, context_length: int) -> None:
        self._script = script
        self._waiting: deque[Generation] = deque()
        self._active: list[Recital] = []
        self._closing: list[TokenEvent] = []
        self._steps = 0
        self._is_closed = False
        self.capabilities = EngineCapabilities(
            context_length=min(context_length, script.context_length),
            rows=rows,
            vocabulary=VOCABULARY,
            grammar=True,
            reproducible_batches=True,
            embed=script.vector_size > 0,
            image_width=ANY_WIDTH,
        )

    def add(self, request: GenerateRequest) -> None:
        request_id = request.request_id
        try:
            if self._is_closed:
                raise EngineError("internal", "the model has been unloaded")
            if self._drop(request_id) is not None:
                raise EngineError("invalid", "this request id is in use")
            context, max_tokens = plan_limits(
                request, self.capabilities.context_length, VOCABULARY, ANY_WIDTH
            )
            self._waiting.append(Generation(request, context=context, max_tokens=max_tokens))
        except EngineError as error:
            self._closing.append(Failed(request_id=request_id, code=error.code, message=str(error)))

    def has_work(self) -> bool:
        return bool(self._closing or self._waiting or self._active)

    def step(self) -> list[TokenEvent]:
        if self._closing:
            events, self._closing = self._closing, []
            return events
        if not self.has_work():
            return []
        self._steps += 1
        while self._waiting and len(self._active) < self.capabilities.rows:
            self._active.append(self._seated(self._waiting.popleft()))
        events: list[TokenEvent] = []
        for recital in list(self._active):
            events += self._advance(recital)
        if not events:
            time.sleep(MAX_NAP_SECONDS / 2)
        return events

    def _seated(self, generation: Generation) -> Recital:
        generation.start()
        return Recital(generation, self._script.rule_for(prompt_text(generation.request)))

    def _advance(self, recital: Recital) -> list[TokenEvent]:
        generation = recital.generation
        if generation.prefilled < generation.prompt_length:
            left = generation.prompt_length - generation.prefilled
            generation.prefilled += min(PREFILL_CHUNK, left)
            return [generation.progress()]
        if time.monotonic() < recital.due:
            return []
        if generation.sampled == 0:
            generation.finish_prefill()
        recital.due += recital.rule.delay_seconds
        return self._speak(recital)

    def _speak(self, recital: Recital) -> list[TokenEvent]:
        """The next piece, or the end, or the fault that the rule asks for."""
        generation = recital.generation
        if generation.max_tokens == 0:
            self._active.remove(recital)
            return [generation.close("length")]
        if recital.has_fault():
            strike(recital.rule.fault)
            self._active.remove(recital)
            return [generation.fail("internal", "the script asked for this failure")]
        ids = list(recital.pieces.popleft().encode()) if recital.pieces else [EOS_ID]
        events: list[TokenEvent] = []
        for token_id in ids:
            try:
                events += self._say(generation, token_id)
            except EngineError as error:
                events.append(generation.fail(error.code, str(error)))
            if generation.has_ended:
                self._active.remove(recital)
                break
        return events

    def _say(self, generation: Generation, token_id: int) -> list[TokenEvent]:
        constraint = generation.request.constraint
        if constraint is not None and not _is_allowed(constraint, token_id):
            return [generation.close("length")] if token_id == EOS_ID else []
        if token_id == EOS_ID:
            generation.sampled += 1
            return [generation.close("stop")]
        if constraint is not None:
            constraint.accept(token_id)
        wanted = generation.request.top_logprobs
        top = ((token_id, 0.0),) if wanted > 0 else ()
        events = generation.accept(token_id, 0.0 if wanted >= 0 else None, top)
        if generation.is_shifted:  # a script needs no context: there is nothing to feed anew
            generation.is_shifted, generation.prefilled = False, generation.prompt_length
        return events

    def cancel(self, request_id: str) -> None:
        generation = self._drop(request_id)
        if generation is not None:
            self._closing.append(generation.close("cancelled"))

    def _drop(self, request_id: str) -> Generation | None:
        for generation in self._waiting:
            if generation.id == request_id:
                self._waiting.remove(generation)
                return generation
        for recital in self._active:
            if recital.generation.id == request_id:
                self._active.remove(recital)
                return recital.generation
        return None

    def embed(self, batch: Sequence[tuple[int, ...]]) -> list[bytes]:
        size = self._script.vector_size
        if size < 1:
            raise EngineError("unsupported", "a scripted model has no embeddings")
        counts = [Counter(token_id % size for token_id in ids) for ids in batch]
        return [struct.pack(f"<{size}f", *(found[i] for i in range(size))) for found in counts]

    def status(self) -> EngineStatus:
        held = sum(len(recital.generation.ids) for recital in self._active)
        return EngineStatus(
            active=len(self._active),
            waiting=len(self._waiting),
            kv_bytes=held * BYTES_PER_ID,
            steps=self._steps,
        )

    def close(self) -> None:
        """What was in flight is reported as cancelled by the next `step`."""
        living = [generation.id for generation in self._waiting]
        living += [recital.generation.id for recital in self._active]
        for request_id in living:
            self.cancel(request_id)
        self._is_closed = True


def prompt_text(request: GenerateRequest) -> str:
    """What rules are asked about. An image is a word: `<image of 4 positions from 0.50>`, its first number."""
    ids, pieces, begin = request.prompt_ids, [], 0
    for span in request.images:
        pieces.append(_text(ids[begin : span.start]))
        (first,) = struct.unpack_from("<f", span.embeddings)
        pieces.append(f"<image of {span.length} positions from {first:.2f}>")
        begin = span.start + span.length
    return "".join([*pieces, _text(ids[begin:])])


def _text(ids: Sequence[int]) -> str:
    return bytes(i for i in ids if 0 <= i < 256).decode("utf-8", "replace")


def _is_allowed(constraint: Constraint, token_id: int) -> bool:
    return bool(constraint.allowed()[token_id >> 3] >> (token_id & 7) & 1)


def strike(fault: Fault) -> None:
    """Ends or stops this very process where the fault says so; returns for "fail" and ""."""
    if fault == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    while fault == "hang":
        time.sleep(3600)
