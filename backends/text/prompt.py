"""The way in: `Chat` → prompt text → ids → `GenerateRequest`. Main thread only; keeps no request.

A prompt that does not fit is cut by `backends.text.history`, or refused. What this build cannot do yet is refused by the field's name.
"""

from __future__ import annotations

import pathlib

import msgspec

from backends.engine.contract import EngineCapabilities
from backends.text.content_form import as_part, wants_parts
from backends.text.go_prompt import render_go
from backends.text.history import PromptFitter
from backends.text.image_marks import ImageMarks, Place
from backends.text.jinja_template import render
from backends.text.tokenizer import Tokenizer
from backends.types import (
    Chat,
    EngineError,
    GenerateRequest,
    Message,
)
from backends.vision.sight import Sight
from converters.artifact import Artifact, SpecialTokens, read_artifact

# A generation without a limit of its own ends after this many contexts.
_CONTEXTS_PER_ANSWER = 10
# Architectures whose context the field does not shift (contract.md §2.9).
_NEVER_SHIFTED = ("deepseek2",)


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """`dropped` ids of what the client sent are not in it; `system_length`: see GenerateRequest.

    `images` says what lies where the ids are below 0; the vectors are made elsewhere. In `text` they are
    `[img-0]`, `[img-1]` ….
    """

    text: str
    ids: tuple[int, ...]
    images: tuple[Place, ...] = ()
    dropped: int = 0
    system_length: int = 0


class ModelText:
    """What the text side knows of one loaded model: its tokenizer, template and special ids."""

    def __init__(self, tokenizer: Tokenizer, chat_template: str, *, shifts: bool = True) -> None:
        """`shifts`: whether answers go on beyond a full context unless a request says otherwise."""
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        # None: this model takes no images.
        self.sight: Sight | None = None
        special = tokenizer.special
        self.end_ids = frozenset(i for i in (*special.end_ids, special.eos_id) if i >= 0)
        self.newline_ids = tokenizer.newline_ids()
        self._special_texts = _special_texts(tokenizer, special)
        self._wants_parts: bool | None = None
        self._fitter = PromptFitter(tokenizer, self._marked_text, shifts=shifts)

    @classmethod
    def load(cls, folder: pathlib.Path) -> tuple[ModelText, Artifact]:
        """Reads the artifact. Raises ArtifactError."""
        artifact = read_artifact(folder)
        tokenizer = Tokenizer.load(folder, artifact.special)
        shifts = artifact.architecture not in _NEVER_SHIFTED
        return cls(tokenizer, artifact.chat_template, shifts=shifts), artifact

    def prompt_text(self, chat: Chat) -> str:
        """The whole prompt, earlier context included. Raises EngineError."""
        marks = ImageMarks(chat, self.sight)
        return marks.shown(self._marked_text(marks.chat, marks))

    def _marked_text(self, chat: Chat, marks: ImageMarks) -> str:
        earlier = self.tokenizer.decode(chat.context_ids) if chat.context_ids else ""
        if chat.prompt is not None:
            return earlier + chat.prompt
        text = self._render(chat)
        marks.check(chat, text)
        return earlier + text

    def prompt(self, chat: Chat, context_length: int | None = None) -> Prompt:
        """Cut to what leaves room for an answer, where the chat allows it. Raises EngineError."""
        marks = ImageMarks(chat, self.sight)
        if context_length is None:
            fitted = self._fitter.whole(marks)
        else:
            fitted = self._fitter.fit(marks, context_length)
        if not fitted.layout.ids:
            raise EngineError("invalid", "the prompt is empty")
        return Prompt(
            text=marks.shown(fitted.text),
            ids=fitted.layout.ids,
            images=fitted.layout.places,
            dropped=fitted.dropped,
            system_length=self._fitter.system_length(marks, fitted),
        )

    def request(self, chat: Chat, prompt: Prompt, context_length: int) -> GenerateRequest:
        """Without the images' vectors. An answer to images ends where its context is full."""
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
            shift=self._fitter.may_shift(chat) and not prompt.images,
            keep_length=self._fitter.keep_length(chat, len(prompt.ids)),
            cache_scope=chat.cache_scope,
            system_length=prompt.system_length,
        )

    def _render(self, chat: Chat) -> str:
        if chat.template:
            return render_go(chat)
        if chat.suffix:
            raise EngineError("unsupported", "this model has no template for a suffix")
        if not self.chat_template:
            return _plain_text(chat.messages)
        messages, prefill = _split_prefill(chat.messages)
        variables: dict[str, object] = {
            "messages": self._messages(messages),
            "tools": [_object(tool, "a tool") for tool in chat.tools] or None,
            "documents": None,
            "add_generation_prompt": True,
            **self._special_texts,
        }
        if chat.think is not None:
            variables["enable_thinking"] = bool(chat.think)
        if isinstance(chat.think, str):
            variables["reasoning_effort"] = chat.think
        return render(self.chat_template, variables) + prefill

    def _messages(self, messages: tuple[Message, ...]) -> list[dict[str, object]]:
        if self._wants_parts is None:
            variables = {"add_generation_prompt": False, **self._special_texts}
            self._wants_parts = wants_parts(self.chat_template, variables)
        found = [_message_variables(message) for message in messages]
        if self._wants_parts:
            for variables, message in zip(found, messages, strict=True):
                variables["content"] = as_part(message.content)
        return found


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
                "function": {
                    "name": call.name,
                    "arguments": _object(call.arguments, "tool call arguments"),
                },
            }
            for call in message.tool_calls
        ]
    return variables


def _object(data: bytes, what: str) -> dict[str, object]:
    try:
        return msgspec.json.decode(data, type=dict[str, object])
    except msgspec.MsgspecError as error:
        raise EngineError("invalid", f"{what}: no JSON object: {error}") from error
