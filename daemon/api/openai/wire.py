"""What chat and text completions read and write, as Structs: contract.md §11.2, 11.3.

Requests give every field a default, because clients leave out anything; `None` is "not sent". Fields
typed `Any` are checked by hand. In answers UNSET leaves a key out and None is sent as null.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from backends.types import Logprob, Usage


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    include_usage: bool = False


class CompletionFields(msgspec.Struct, frozen=True, kw_only=True):
    """What both requests share. The last lines are known from elsewhere and mean nothing here."""

    model: str = ""
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    stop: Any = None
    n: int = 1
    debug_render_only: bool = msgspec.field(default=False, name="_debug_render_only")
    logit_bias: Any = None
    options: Any = None
    keep_alive: Any = None
    num_ctx: Any = None
    top_k: Any = None
    min_p: Any = None
    repeat_penalty: Any = None
    repetition_penalty: Any = None


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """`arguments` is a JSON object as text."""

    name: str = ""
    arguments: Any = ""


class WireToolCall(msgspec.Struct, frozen=True, kw_only=True):
    id: str = ""
    function: FunctionCall = FunctionCall()


class ContentPart(msgspec.Struct, frozen=True, kw_only=True):
    type: str = ""
    text: str = ""
    refusal: str = ""
    image_url: Any = None


class WireMessage(msgspec.Struct, frozen=True, kw_only=True):
    """`reasoning_content` is another spelling of `reasoning`."""

    role: str = ""
    content: str | tuple[ContentPart, ...] | None = None
    reasoning: str = ""
    reasoning_content: str = ""
    tool_calls: tuple[WireToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


class JsonSchema(msgspec.Struct, frozen=True, kw_only=True):
    schema: dict[str, Any] | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    type: str = ""
    json_schema: JsonSchema = JsonSchema()


class Reasoning(msgspec.Struct, frozen=True, kw_only=True):
    effort: str = ""
    summary: str | None = None


class ChatRequest(CompletionFields, frozen=True, kw_only=True):
    messages: tuple[WireMessage, ...] = ()
    max_completion_tokens: int | None = None
    response_format: ResponseFormat = ResponseFormat()
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    reasoning: Reasoning = Reasoning()
    reasoning_effort: str = ""
    logprobs: bool = False
    top_logprobs: int = 0
    modalities: tuple[str, ...] = ()
    audio: Any = None
    functions: Any = None
    function_call: Any = None
    web_search_options: Any = None
    verbosity: Any = None


class CompletionRequest(CompletionFields, frozen=True, kw_only=True):
    """`logprobs` is how many alternatives each token is shown with."""

    prompt: Any = ""
    suffix: str = ""
    logprobs: int | None = None
    echo: bool = False
    best_of: int = 1


class PromptTokens(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`dropped_tokens` is ours: ids of what was sent that the model does not see any more."""

    cached_tokens: int
    dropped_tokens: int = 0


class CompletionTokens(msgspec.Struct, frozen=True, kw_only=True):
    """`reasoning_tokens`: of the answer, those of its thoughts."""

    reasoning_tokens: int


class WireUsage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens
    completion_tokens_details: CompletionTokens

    @classmethod
    def of(cls, usage: Usage) -> WireUsage:
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details=PromptTokens(
                cached_tokens=usage.cached_tokens, dropped_tokens=usage.dropped_tokens
            ),
            completion_tokens_details=CompletionTokens(reasoning_tokens=usage.thinking_tokens),
        )


class TopLogprob(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    logprob: float
    bytes: tuple[int, ...]


class TokenLogprob(TopLogprob, frozen=True, kw_only=True):
    """`bytes` are the token's own, which may be part of a character; `token` is its lossy text."""

    top_logprobs: tuple[TopLogprob, ...]

    @classmethod
    def of(cls, one: Logprob) -> TokenLogprob:
        top = tuple(
            TopLogprob(token=other.token, logprob=other.logprob, bytes=tuple(other.data))
            for other in one.top
        )
        return cls(token=one.token, logprob=one.logprob, bytes=tuple(one.data), top_logprobs=top)


class ChoiceLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    content: tuple[TokenLogprob, ...]


class AnswerFunction(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    arguments: str


class AnswerToolCall(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    index: int
    type: str
    function: AnswerFunction


class AnswerMessage(msgspec.Struct, frozen=True, kw_only=True):
    """Whole, or what a chunk adds to it."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: tuple[AnswerToolCall, ...] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int = 0
    message: AnswerMessage
    finish_reason: str
    logprobs: ChoiceLogprobs | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int = 0
    delta: AnswerMessage
    finish_reason: str | None
    logprobs: ChoiceLogprobs | UnsetType = UNSET


class TextLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Entries of all four belong together; offsets count the characters of the tokens before."""

    tokens: tuple[str, ...]
    token_logprobs: tuple[float, ...]
    top_logprobs: tuple[dict[str, float], ...] | None
    text_offset: tuple[int, ...]


class TextChoice(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    index: int = 0
    finish_reason: str | None
    logprobs: TextLogprobs | UnsetType = UNSET


class DebugInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    rendered_template: str
    image_count: int = 0


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What all objects share: whole answers and chunks. `created` is seconds of Unix time."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: tuple[ChatChoice | ChunkChoice | TextChoice, ...]
    usage: WireUsage | UnsetType | None = UNSET
    debug_info: DebugInfo | UnsetType = msgspec.field(default=UNSET, name="_debug_info")
