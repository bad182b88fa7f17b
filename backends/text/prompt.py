"""The way in: `Chat` → prompt text → ids → `GenerateRequest`. Main thread only; keeps no request.

A prompt is never cut here: one that does not fit is refused with the text that clients look for.
What this build cannot do yet is refused by the field's name.
"""

from __future__ import annotations

import pathlib

import msgspec

from backends.text.jinja_template import render
from backends.text.tokenizer import Tokenizer
from backends.types import Chat, EngineCapabilities, EngineError, GenerateRequest, Message
from converters.artifact import Artifact, SpecialTokens, read_artifact

TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; shorten the "
    "prompt, adjust the context length in settings, or use a model with a longer context length"
)
# A generation without a limit of its own ends after this many contexts.
_CONTEXTS_PER_ANSWER = 10


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    ids: tuple[int, ...]


class ModelText:
    """What the text side knows of one loaded model: its tokenizer, template and special ids."""

    def __init__(self, tokenizer: Tokenizer, chat_template: str) -> None:
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        special = tokenizer.special
        self.end_ids = frozenset(i for i in (*special.end_ids, special.eos_id) if i >= 0)
        self.newline_ids = tokenizer.newline_ids()
        self._special_texts = _special_texts(tokenizer, special)

    @classmethod
    def load(cls, folder: pathlib.Path) -> tuple[ModelText, Artifact]:
        """Reads the artifact. Raises ArtifactError."""
        artifact = read_artifact(folder)
        return cls(Tokenizer.load(folder, artifact.special), artifact.chat_template), artifact

    def prompt_text(self, chat: Chat) -> str:
        """The whole prompt, earlier context included. Raises EngineError."""
        _refuse_unsupported(chat)
        earlier = self.tokenizer.decode(chat.context_ids) if chat.context_ids else ""
        if chat.prompt is not None:
            return earlier + chat.prompt
        return earlier + self._render(chat)

    def prompt(self, chat: Chat, context_length: int | None = None) -> Prompt:
        """Raises EngineError("too_long") when fewer than one id of `context_length` is left."""
        text = self.prompt_text(chat)
        limit = None if context_length is None else context_length - 1
        if limit is not None and self.tokenizer.fewest_ids(text) > limit:
            raise EngineError("too_long", TOO_LONG)
        ids = self.tokenizer.encode_prompt(text)
        if limit is not None and len(ids) > limit:
            raise EngineError("too_long", TOO_LONG)
        if not ids:
            raise EngineError("invalid", "the prompt is empty")
        return Prompt(text=text, ids=ids)

    def request(self, chat: Chat, prompt: Prompt, context_length: int) -> GenerateRequest:
        bound = _CONTEXTS_PER_ANSWER * context_length
        wanted = chat.limits.max_tokens
        return GenerateRequest(
            request_id=chat.request_id,
            prompt_ids=prompt.ids,
            sampling=chat.sampling,
            max_tokens=wanted if 0 <= wanted <= bound else bound,
            context_length=context_length,
            end_ids=self.end_ids,
            newline_ids=self.newline_ids,
            top_logprobs=max(chat.top_logprobs, 0) if chat.logprobs else -1,
            reproducible=chat.reproducible,
        )

    def _render(self, chat: Chat) -> str:
        if not self.chat_template:
            return _plain_text(chat.messages)
        messages, prefill = _split_prefill(chat.messages)
        variables: dict[str, object] = {
            "messages": [_message_variables(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            **self._special_texts,
        }
        if chat.think is not None:
            variables["enable_thinking"] = bool(chat.think)
        return render(self.chat_template, variables) + prefill


def context_length_of(chat: Chat, capabilities: EngineCapabilities) -> int:
    """Ids that prompt and answer may have together: the request's wish, within the engine's row."""
    return min(chat.limits.context_length, capabilities.context_length)


def _special_texts(tokenizer: Tokenizer, special: SpecialTokens) -> dict[str, str]:
    ids = {
        "bos_token": special.bos_id,
        "eos_token": special.eos_id,
        "unk_token": special.unknown_id,
        "pad_token": special.padding_id,
    }
    return {name: tokenizer.piece(i).decode("utf-8", "replace") for name, i in ids.items()}


def _refuse_unsupported(chat: Chat) -> None:
    """What later builds bring; each named as the client wrote it."""
    given = {
        "tools": bool(chat.tools),
        "think": bool(chat.think),
        "format": chat.format is not None,
        "template": bool(chat.template),
        "suffix": bool(chat.suffix),
        "images": any(message.images for message in chat.messages),
    }
    names = [name for name, is_given in given.items() if is_given]
    if names:
        raise EngineError("unsupported", f"not supported yet: {', '.join(names)}")


def _plain_text(messages: tuple[Message, ...]) -> str:
    """A model without any template continues the text: contents in order, the system's set apart."""
    return "".join(
        message.content + "\n\n" if message.role == "system" else message.content
        for message in messages
    )


def _split_prefill(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], str]:
    """A closing assistant message is the beginning of the answer, not a finished turn."""
    last = messages[-1] if messages else None
    if last is None or last.role != "assistant" or last.tool_calls or len(messages) == 1:
        return messages, ""
    return messages[:-1], last.content


def _message_variables(message: Message) -> dict[str, object]:
    """One message as chat templates expect it; absent things are absent keys."""
    variables: dict[str, object] = {"role": message.role, "content": message.content}
    if message.thinking:
        variables["reasoning_content"] = variables["thinking"] = message.thinking
    if message.tool_name:
        variables["name"] = variables["tool_name"] = message.tool_name
    if message.tool_call_id:
        variables["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        variables["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    return variables


def _arguments(data: bytes) -> dict[str, object]:
    try:
        return msgspec.json.decode(data, type=dict[str, object])
    except msgspec.MsgspecError as error:
        raise EngineError("invalid", f"tool call arguments are no JSON object: {error}") from error
