"""Room for prompts whose request says no num_ctx: OpenAI's and Anthropic's clients cannot.

An agent's first request is often longer than the default context. Rather than to cut or refuse it,
the model is loaded with longer rows, as far as it was trained for. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from backends.types import Chat
from daemon.api.options import ResolvedOptions

# What is kept free for the answer where the request does not say, and where it says very much.
_USUAL_ROOM, _MOST_ROOM = 1024, 4096
# What a chat template writes around a message, in bytes.
_MARKUP_BYTES = 128


def may_not_fit(chat: Chat) -> bool:
    """False where the prompt is short enough for its limit whatever its text is.

    No text has more ids than bytes; how many positions an image takes only its model knows.
    """
    if any(message.images for message in chat.messages):
        return True
    nbytes = sum(len(text) + _MARKUP_BYTES for text in _texts(chat))
    return nbytes + _room(chat) > chat.limits.context_length


def grown(options: ResolvedOptions, chat: Chat, prompt_ids: int, trained: int) -> ResolvedOptions:
    """With the next power of two that holds prompt and answer, but not beyond what was trained.

    The same options where the prompt fits, or would not fit anyway.
    """
    length, needed = options.limits.context_length, prompt_ids + _room(chat)
    while length < needed:
        length *= 2
    length = min(length, trained)
    if length <= options.limits.context_length or length <= prompt_ids:
        return options
    limits = msgspec.structs.replace(options.limits, context_length=length)
    return msgspec.structs.replace(options, limits=limits, wanted_context_length=length)


def _room(chat: Chat) -> int:
    asked = chat.limits.max_tokens
    return min(asked, _MOST_ROOM) if asked > 0 else _USUAL_ROOM


def _texts(chat: Chat) -> Iterator[bytes]:
    for message in chat.messages:
        yield msgspec.json.encode(message)
    yield from chat.tools
    yield chat.suffix.encode()
