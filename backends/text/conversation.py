"""The way back of one chat: `TokenEvent` → bytes → text → stop strings → thoughts, calls, answer.

Promise: text in the order it was sampled, one log-probability per id, and exactly one closing
message, a `Delta` with `finish` or a `Failed`. Nothing of a stop string is shown, nor the ids or
log-probabilities of what lies behind it. Main thread only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgspec

from backends.text.detokenizer import Detokenizer
from backends.text.harmony import Shown
from backends.text.markup import Markup, MarkupReader, joined
from backends.text.prompt import ModelText, Prompt
from backends.text.stops import StopMatcher
from backends.types import (
    Chat,
    Delta,
    Failed,
    Finished,
    FinishReason,
    FromWorker,
    Logprob,
    Prefilled,
    Progress,
    Sampled,
    TokenEvent,
    Usage,
)


class _Pending(msgspec.Struct, frozen=True):
    """A sampled id whose text, from character `start` of the answer on, is not all shown yet."""

    token_id: int
    text: str
    start: int
    logprob: Logprob | None

    @property
    def end(self) -> int:
        return self.start + len(self.text)


class ThoughtCount:
    """How many ids of an answer were thoughts, their tags included."""

    def __init__(self) -> None:
        self.total = 0
        self._undecided = 0
        self._is_thinking: bool | None = None

    def saw(self, shown: Shown) -> None:
        """What came out; with it begins or goes on a thought, or something else."""
        self._is_thinking = not (shown.text or shown.calls)
        if self._is_thinking:
            self.total += self._undecided
        self._undecided = 0

    def count(self) -> None:
        """One more id. Before anything came out it is what comes out first."""
        if self._is_thinking is None:
            self._undecided += 1
        elif self._is_thinking:
            self.total += 1


class Conversation:
    """`has_stopped` turns true when a stop string was met: then the engine may be told to cancel."""

    def __init__(self, chat: Chat, prompt: Prompt, model: ModelText) -> None:
        self.request_id = chat.request_id
        self.has_stopped = False
        self.is_over = False
        self._model = model
        self._prompt = prompt
        self._wants_context = chat.want_context
        self._detokenizer = Detokenizer()
        self._stops = StopMatcher(chat.stop)
        self._pending: deque[_Pending] = deque()
        self._decoded_characters = 0
        self._shown_characters = 0
        self._sampled = 0
        self._thoughts = ThoughtCount()
        self._answer_ids: list[int] = []
        self._is_constrained = chat.format is not None or bool(chat.required_tools)
        self.markup = Markup.of(chat, model.chat_template, prompt.text)
        self._reader = MarkupReader(self.markup, prompt.text)
        self._shown: list[Shown] = []
        self._logprobs: list[Logprob] = []

    def take(self, events: Iterable[TokenEvent]) -> list[FromWorker]:
        """What to send for the events of one step, in order; texts of one step are merged."""
        messages: list[FromWorker] = []
        for event in events:
            if self.is_over:
                break
            match event:
                case Sampled():
                    self._take_sampled(event)
                case Prefilled():
                    messages.append(self._progress(event))
                case Finished():
                    self._flush()
                    messages += [*self._collect(), self._closing(event)]
                    self.is_over = True
                case Failed():
                    messages += [*self._collect(), event]
                    self.is_over = True
        return [*messages, *self._collect()]

    def _progress(self, event: Prefilled) -> Progress:
        return Progress(
            request_id=self.request_id, done=event.done, total=event.total, cached=event.cached
        )

    def _take_sampled(self, event: Sampled) -> None:
        if self.has_stopped:
            return
        self._sampled += 1
        text = self._detokenizer.push(self._model.tokenizer.piece(event.token_id))
        pending = _Pending(event.token_id, text, self._decoded_characters, self._logprob(event))
        self._pending.append(pending)
        self._decoded_characters += len(text)
        self._show(self._stops.push(text))
        self._thoughts.count()
        if self._stops.stop_text:
            self._stop()

    def _show(self, text: str) -> None:
        """Releases `text` and every id whose text is all shown now."""
        self._shown_characters += len(text)
        if text:
            self._add(self._reader.push(text))
        while self._pending and self._pending[0].end <= self._shown_characters:
            self._release(self._pending.popleft())

    def _add(self, shown: Shown) -> None:
        if any(shown):
            self._shown.append(shown)
            self._thoughts.saw(shown)

    def _release(self, pending: _Pending) -> None:
        if pending.logprob is not None:
            self._logprobs.append(pending.logprob)
        if self._wants_context:
            self._answer_ids.append(pending.token_id)

    def _stop(self) -> None:
        """A stop string is complete: an id that it begins inside keeps only its first part."""
        self.has_stopped = True
        if self._pending and self._pending[0].start < self._shown_characters:
            cut = self._pending[0]
            self._release(cut)
            if self._wants_context:
                kept = cut.text[: self._shown_characters - cut.start]
                self._answer_ids[-1:] = self._model.tokenizer.encode(kept)
        self._pending.clear()

    def _flush(self) -> None:
        """The engine is done: what was held back was no stop string and no mark-up."""
        if not self.has_stopped:
            self._flush_text()
        self._add(self._reader.flush())

    def _flush_text(self) -> None:
        rest = self._detokenizer.flush()
        self._decoded_characters += len(rest)
        self._show(self._stops.push(rest))
        self._show(self._stops.flush())
        if self._stops.stop_text:
            self._stop()
        while self._pending:
            self._release(self._pending.popleft())

    def _collect(self) -> list[FromWorker]:
        if not self._shown and not self._logprobs:
            return []
        shown = joined(self._shown)
        delta = Delta(
            request_id=self.request_id,
            text=shown.text,
            thinking=shown.thinking,
            tool_calls=shown.calls,
            logprobs=tuple(self._logprobs),
        )
        self._shown.clear()
        self._logprobs.clear()
        return [delta]

    def _closing(self, event: Finished) -> Delta:
        context = self._context_ids() if self._wants_context else ()
        return Delta(
            request_id=self.request_id,
            finish=self._reason(event),
            stop_text=self._stops.stop_text,
            usage=self._usage(event.usage),
            context_ids=context,
        )

    def _context_ids(self) -> tuple[int, ...]:
        """Without images: clients give these back as ids of text, which is all that they can be."""
        return (*(i for i in self._prompt.ids if i >= 0), *self._answer_ids)

    def _reason(self, event: Finished) -> FinishReason:
        """A document or call that a stop string cut is not whole, and `stop` would say that it is."""
        if not self.has_stopped:
            return event.reason
        return "length" if self._is_constrained else "stop"

    def _usage(self, usage: Usage) -> Usage:
        """Ids that the engine sampled before it heard of the stop string do not count."""
        return msgspec.structs.replace(
            usage,
            completion_tokens=self._sampled if self.has_stopped else usage.completion_tokens,
            dropped_tokens=usage.dropped_tokens + self._prompt.dropped,
            thinking_tokens=self._thoughts.total,
        )

    def _logprob(self, event: Sampled) -> Logprob | None:
        if event.logprob is None:
            return None
        top = tuple(self._single(token_id, logprob) for token_id, logprob in event.top)
        return self._single(event.token_id, event.logprob, top)

    def _single(self, token_id: int, logprob: float, top: tuple[Logprob, ...] = ()) -> Logprob:
        data = self._model.tokenizer.piece(token_id)
        text = data.decode("utf-8", "replace")
        return Logprob(token=text, logprob=min(logprob, 0.0), data=data, top=top)
