"""Making a prompt fit its context: old messages go first, then ids from the middle. Main thread only.

contract.md §2.9: layer 1 drops the oldest messages one by one until the rendered prompt fits; system
messages and the last one stay. Layer 2, where contexts may be shifted, keeps the first ids and the
newest. Nothing is dropped silently: `Fitted.dropped` says how many ids the model does not see.
Images go with their messages; layer 2 does not cut what has any.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from backends.engine.generation import TOO_LONG
from backends.engine.prefix_index import common_length
from backends.text.image_marks import ImageMarks, Layout
from backends.text.tokenizer import Tokenizer
from backends.types import Chat, EngineError, Message

# Templates may refuse a history that begins in the middle of a turn: so many more messages may go.
_MOST_MORE = 3


class Fitted(NamedTuple):
    """A prompt's text with marks, its ids and images, and how many ids it lacks of what was sent."""

    text: str
    layout: Layout
    dropped: int = 0


class PromptFitter:
    """`render` gives the whole prompt text of a chat that has marks; it may raise EngineError."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        render: Callable[[Chat, ImageMarks], str],
        *,
        shifts: bool,
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

    def whole(self, marks: ImageMarks) -> Fitted:
        """However long it is."""
        text = self._render(marks.chat, marks)
        return Fitted(text, self._layout(text, marks))

    def fit(self, marks: ImageMarks, context_length: int) -> Fitted:
        """At most `context_length` - 1 ids. Raises EngineError("too_long") where none may go."""
        chat = marks.chat
        text = self._render(chat, marks)
        limit = context_length - 1
        if not chat.truncate and self._tokenizer.fewest_ids(marks.shown(text)) > limit:
            raise EngineError("too_long", TOO_LONG)
        layout = self._layout(text, marks, context_length)
        if len(layout.ids) <= limit:
            return Fitted(text, layout)
        if not chat.truncate:
            raise EngineError("too_long", TOO_LONG)
        sent = len(layout.ids)
        if chat.prompt is None:
            text, layout = self._shortened(marks, text, layout, context_length)
        if len(layout.ids) > limit:
            if layout.places or not self.may_shift(chat):
                raise EngineError("too_long", TOO_LONG)
            keep = self.keep_length(chat, len(layout.ids))
            layout = Layout(truncated(layout.ids, context_length, keep))
        return Fitted(text, layout, sent - len(layout.ids))

    def system_length(self, marks: ImageMarks, fitted: Fitted) -> int:
        """How many leading ids are the system prompt: text that other clients have said as well.

        Counted only where somebody must be kept apart from somebody.
        """
        chat = marks.chat
        system = next((m.content for m in chat.messages[:1] if m.role == "system"), "")
        place = fitted.text.find(system) if system and chat.cache_scope else -1
        if place < 0:
            return 0
        leading = self._layout(fitted.text[: place + len(system)], marks)
        return common_length(leading.ids, fitted.layout.ids)

    def _layout(self, text: str, marks: ImageMarks, context_length: int = 0) -> Layout:
        """All ids; with a `context_length`, of long texts only their ends: see `_ends`."""

        def encode(piece: str, is_first: bool) -> tuple[int, ...]:
            return self._ends(piece, is_first, context_length)

        return marks.lay_out(text, self._tokenizer, encode)

    def _ends(self, text: str, is_first: bool, context_length: int) -> tuple[int, ...]:
        """Of a text many contexts long only the ids of its two ends, each a context at least."""
        tokenizer = self._tokenizer
        encode = tokenizer.encode_prompt if is_first else tokenizer.encode
        fewest = tokenizer.fewest_ids(text)
        if not context_length or fewest <= 2 * context_length:
            return encode(text)
        end = (len(text) // fewest + 1) * context_length
        return (*encode(text[:end]), *tokenizer.encode(text[-end:]))

    def _shortened(
        self, marks: ImageMarks, text: str, layout: Layout, context_length: int
    ) -> tuple[str, Layout]:
        """The prompt without as few of its oldest messages as make it fit, or without all of them."""
        found = {0: (text, layout)}

        def without(count: int) -> tuple[str, Layout]:
            if count not in found:
                shorter = self._render_without(marks, count)
                found[count] = (shorter, self._layout(shorter, marks, context_length))
            return found[count]

        droppable = len(droppable_messages(marks.chat.messages))

        def fits(count: int) -> bool:
            """One id too many is layer 2's affair, which does not touch images."""
            layout = without(count)[1]
            return len(layout.ids) <= context_length - bool(layout.places)

        fewest = bisect.bisect_left(range(droppable + 1), True, key=fits)
        return without(min(fewest, droppable))

    def _render_without(self, marks: ImageMarks, count: int) -> str:
        """Without the `count` oldest messages; a few more where the template wants it so."""
        chat = marks.chat
        most = min(count + _MOST_MORE, len(droppable_messages(chat.messages)))
        for number in range(count, most + 1):
            messages = without_oldest(chat.messages, number)
            try:
                return self._render(msgspec.structs.replace(chat, messages=messages), marks)
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
