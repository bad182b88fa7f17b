"""Making a prompt fit its context: old messages go first, then ids from the middle. Main thread only.

contract.md §2.9: layer 1 drops the oldest messages one by one until the rendered prompt fits; system
messages and the last one stay. Layer 2, where contexts may be shifted, keeps the first ids and the
newest. Nothing is dropped silently: `Fitted.dropped` says how many ids the model does not see.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from backends.engine.generation import TOO_LONG
from backends.engine.prefix_index import common_length
from backends.text.tokenizer import Tokenizer
from backends.types import Chat, EngineError, Message

# Templates may refuse a history that begins in the middle of a turn: so many more messages may go.
_MOST_MORE = 3


class Fitted(NamedTuple):
    """A prompt's text, its ids, and how many ids it lacks of what the client sent."""

    text: str
    ids: tuple[int, ...]
    dropped: int = 0


class PromptFitter:
    """`render` gives a chat's whole prompt text; it may raise EngineError."""

    def __init__(
        self, tokenizer: Tokenizer, render: Callable[[Chat], str], *, shifts: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._render = render
        self._shifts = shifts

    def may_shift(self, chat: Chat) -> bool:
        """What the request says, or what this kind of model does."""
        return self._shifts if chat.shift is None else chat.shift

    def keep_length(self, chat: Chat, prompt_length: int) -> int:
        """Leading ids that must stay: num_keep, negative for the whole prompt, and the model's BOS."""
        wanted = chat.limits.num_keep
        if wanted < 0:
            return prompt_length
        special = self._tokenizer.special
        return wanted + (1 if special.add_bos and special.bos_id >= 0 else 0)

    def fit(self, chat: Chat, context_length: int) -> Fitted:
        """At most `context_length` - 1 ids. Raises EngineError("too_long") where none may go."""
        text = self._render(chat)
        limit = context_length - 1
        if not chat.truncate and self._tokenizer.fewest_ids(text) > limit:
            raise EngineError("too_long", TOO_LONG)
        ids = self._ids(text, context_length)
        if len(ids) <= limit:
            return Fitted(text, ids)
        if not chat.truncate:
            raise EngineError("too_long", TOO_LONG)
        sent = len(ids)
        if chat.prompt is None:
            text, ids = self._shortened(chat, text, ids, context_length)
        if len(ids) > limit:
            if not self.may_shift(chat):
                raise EngineError("too_long", TOO_LONG)
            ids = truncated(ids, context_length, self.keep_length(chat, len(ids)))
        return Fitted(text, ids, sent - len(ids))

    def system_length(self, chat: Chat, fitted: Fitted) -> int:
        """How many leading ids are the system prompt: text that other clients have said as well.

        Counted only where somebody must be kept apart from somebody.
        """
        system = next((m.content for m in chat.messages[:1] if m.role == "system"), "")
        place = fitted.text.find(system) if system and chat.cache_scope else -1
        if place < 0:
            return 0
        leading = self._tokenizer.encode_prompt(fitted.text[: place + len(system)])
        return common_length(leading, fitted.ids)

    def _ids(self, text: str, context_length: int) -> tuple[int, ...]:
        """All ids; of a text many contexts long only those of its two ends, each a context at least."""
        tokenizer = self._tokenizer
        fewest = tokenizer.fewest_ids(text)
        if fewest <= 2 * context_length:
            return tokenizer.encode_prompt(text)
        end = (len(text) // fewest + 1) * context_length
        return (*tokenizer.encode_prompt(text[:end]), *tokenizer.encode(text[-end:]))

    def _shortened(
        self, chat: Chat, text: str, ids: tuple[int, ...], context_length: int
    ) -> tuple[str, tuple[int, ...]]:
        """The prompt without as few of its oldest messages as make it fit, or without all of them."""
        found = {0: (text, ids)}

        def without(count: int) -> tuple[str, tuple[int, ...]]:
            if count not in found:
                shorter = self._render_without(chat, count)
                found[count] = (shorter, self._ids(shorter, context_length))
            return found[count]

        droppable = len(droppable_messages(chat.messages))
        fewest = bisect.bisect_left(
            range(droppable + 1), True, key=lambda n: len(without(n)[1]) <= context_length
        )
        return without(min(fewest, droppable))

    def _render_without(self, chat: Chat, count: int) -> str:
        """Without the `count` oldest messages; a few more where the template wants it so."""
        most = min(count + _MOST_MORE, len(droppable_messages(chat.messages)))
        for number in range(count, most + 1):
            messages = without_oldest(chat.messages, number)
            try:
                return self._render(msgspec.structs.replace(chat, messages=messages))
            except EngineError as error:
                if error.code != "template" or number == most:
                    raise
        raise AssertionError("a loop over at least one number ended")


def droppable_messages(messages: Sequence[Message]) -> list[int]:
    """Places of the messages that may go, oldest first: not the system's and not the last."""
    return [place for place, one in enumerate(messages[:-1]) if one.role != "system"]


def without_oldest(messages: Sequence[Message], count: int) -> tuple[Message, ...]:
    gone = set(droppable_messages(messages)[:count])
    return tuple(message for place, message in enumerate(messages) if place not in gone)


def truncated(ids: Sequence[int], context_length: int, keep: int) -> tuple[int, ...]:
    """The first `keep` ids and the newest, together `context_length` - max(rest / 2, 1).

    So there is room for an answer of half of what need not be kept.
    """
    keep = min(keep, context_length - 1)
    total = max(1, context_length - max((context_length - keep) // 2, 1))
    newest = total - keep
    return (*ids[:keep], *ids[len(ids) - newest :]) if newest > 0 else tuple(ids[:total])
