"""What crosses the socket between the daemon and a worker, and what a worker asks of its engine.

NOTE: three levels, one type each way. Text in (`Chat`), ids in (`GenerateRequest`), ids out
(`TokenEvent`), text out (`Delta`). Engines never see text and the daemon never sees ids, except for
`context_ids`, which the Ollama API hands to its clients. All Structs are frozen; new fields get
defaults, so that a daemon and a worker of neighbouring builds still understand each other.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from backends.image_span import ImageSpan

RequestId = str
FinishReason = Literal["stop", "length", "cancelled"]


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the next id is chosen. Names and meanings follow the Ollama option table.

    `top_k` <= 0 and `top_p` >= 1 switch their filter off; `temperature` <= 0 is greedy. `seed` None
    draws one; `repeat_last_n` counts ids (0 off, -1 the whole context).
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    tfs_z: float = 1.0
    seed: int | None = None
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalize_newline: bool = True
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`max_tokens` < 0 means as many as fit (bounded by ten contexts); `context_length` counts ids."""

    max_tokens: int = -1
    context_length: int = 4096
    num_keep: int = 4


class ToolCall(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`arguments` is a JSON object as text, key order kept."""

    id: str = ""
    name: str = ""
    arguments: bytes = b"{}"
    index: int = 0


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`images` are files as they came; `image_places`, rising, say before which character of `content`
    each of the first of them stands. Those without a place stand before the text, in order.
    """

    role: str
    content: str = ""
    thinking: str = ""
    images: tuple[bytes, ...] = ()
    image_places: tuple[int, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_name: str = ""
    tool_call_id: str = ""


class Chat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="chat"):
    """One generation, at the text level, of `messages` or of a `prompt`.

    `prompt` is raw: no template at all, and of messages beside it only the images count, which stand in
    front. `template` is the Go template to use instead of the
    artifact's own chat template (empty: the artifact's). `context_ids` are put before the rendered
    prompt. `cache_scope` names who may share what is kept of it (one API key, say): see
    `GenerateRequest`. `tools` and `format` are JSON text; `format` is None, "json" in quotes or a
    JSON Schema. With `required_tools`, names among `tools`, the answer is calls of these, and
    `format` is not looked at. `want_context` asks for the ids of prompt and answer in the final
    `Delta`, those of images left out.
    """

    request_id: RequestId
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    template: str = ""
    suffix: str = ""
    context_ids: tuple[int, ...] = ()
    tools: tuple[bytes, ...] = ()
    required_tools: tuple[str, ...] = ()
    think: bool | str | None = None
    format: bytes | None = None
    stop: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    limits: Limits = Limits()
    logprobs: bool = False
    top_logprobs: int = 0
    truncate: bool = True
    shift: bool | None = None
    want_context: bool = False
    reproducible: bool = False
    cache_scope: str = ""


class Embed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="embed"):
    """`dimensions` 0 keeps all. Without `truncate` a text that is too long fails the request."""

    request_id: RequestId
    texts: tuple[str, ...]
    truncate: bool = True
    dimensions: int = 0
    normalize: bool = True
    context_length: int = 0


class Rank(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="rank"):
    """How well each document answers the query. With `truncate` long documents are cut to fit."""

    request_id: RequestId
    query: str
    documents: tuple[str, ...]
    truncate: bool = True


class CountTokens(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="count"):
    """Ids that this chat's rendered prompt has."""

    request_id: RequestId
    chat: Chat


class Render(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="render"):
    """The prompt that this chat would be given, as text."""

    request_id: RequestId
    chat: Chat


class Probe(msgspec.Struct, frozen=True, kw_only=True, tag="probe"):
    """Asks a worker how it is; answered by `Status` even while it generates."""

    request_id: RequestId


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag="cancel"):
    request_id: RequestId


class Load(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="load"):
    """First request to a worker. `backend` names a folder of `backends`; paths are absolute.

    `rows` is how many requests may decode together; `kv_bytes` bounds all KV caches (0: chosen by the
    engine); `threads` 0 lets the engine choose; `precise` turns integer activations off.
    `prefix_cache_bytes` > 0: what all models together may keep of prompts below `cache_folder`.
    `ranks` more than 1: the model is split over so many processes, by "tensor" or "pipeline" or as
    it can. `projector`: the folder of a `VisionArtifact`, for a model that takes images.
    """

    request_id: RequestId
    backend: str
    artifact: str
    device: str = "cpu"
    adapters: tuple[str, ...] = ()
    projector: str = ""
    rows: int = 4
    context_length: int = 4096
    kv_bytes: int = 0
    threads: int = 0
    precise: bool = False
    cache_folder: str = ""
    prefix_cache_bytes: int = 0
    ranks: int = 1
    split: str = "auto"


class Loaded(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="loaded"):
    """`context_length` is the most one row can hold; `resident_bytes` what the worker measured.

    `numbers` is the type that the engine computes in, where it chose one; `steps` how a device
    runs its decode steps, in words for people.
    """

    request_id: RequestId
    context_length: int
    rows: int
    resident_bytes: int
    load_ns: int
    capabilities: tuple[str, ...] = ()
    device: str = "cpu"
    numbers: str = ""
    steps: str = ""


class Logprob(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Natural-log probability of one piece of text, before any filter of the sampler.

    `data` is the id's own bytes (maybe part of a character); `token` its lossy text.
    """

    token: str
    logprob: float
    data: bytes = b""
    top: tuple[Logprob, ...] = ()


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Counts of ids and times in ns. `prompt_tokens` is the full prompt, cached part included.

    `dropped_tokens` are ids of prompt and answer that were cut or left the context;
    `forced_tokens` those that only brought a constrained answer to its end before its limit;
    `thinking_tokens` those of the answer before what was no thought.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    dropped_tokens: int = 0
    completion_tokens: int = 0
    prefill_ns: int = 0
    decode_ns: int = 0
    queued_ns: int = 0
    forced_tokens: int = 0
    thinking_tokens: int = 0


class Delta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="delta"):
    """A piece of an answer. The one with `finish` is the last; `stop_text` is the stop string met."""

    request_id: RequestId
    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[Logprob, ...] = ()
    finish: FinishReason | None = None
    stop_text: str = ""
    usage: Usage | None = None
    context_ids: tuple[int, ...] = ()


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="progress"):
    """Prefill has done `done` of `total` ids, `cached` of them before; shows that a worker is alive."""

    request_id: RequestId
    done: int
    total: int
    cached: int = 0


class Embedded(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="embedded"):
    """`vectors` are float32 little-endian bytes; `json` the same as ready-made JSON arrays."""

    request_id: RequestId
    vectors: tuple[bytes, ...]
    json: tuple[bytes, ...]
    prompt_tokens: int = 0


class Ranked(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="ranked"):
    """A score for each document, higher is better, as the model's head gives it.

    They `are_probabilities` where the head ends in a softmax, else numbers of any size. `prompt_tokens` counts ids of all pairs, `dropped_tokens` those of documents that were cut.
    """

    request_id: RequestId
    scores: tuple[float, ...]
    are_probabilities: bool = False
    prompt_tokens: int = 0
    dropped_tokens: int = 0


class Counted(msgspec.Struct, frozen=True, kw_only=True, tag="counted"):
    request_id: RequestId
    tokens: int


class Rendered(msgspec.Struct, frozen=True, kw_only=True, tag="rendered"):
    request_id: RequestId
    prompt: str


class Status(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="status"):
    """`moved` counts what brought any request further: prefilled chunks, ids, slices of embeddings."""

    request_id: RequestId
    active: int = 0
    waiting: int = 0
    kv_bytes: int = 0
    resident_bytes: int = 0
    steps: int = 0
    loaded: bool = False
    cached_bytes: int = 0
    moved: int = 0


class Failed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="failed"):
    """The request ends here. `code` is one of `backends.failure_codes`; `message` is for the user."""

    request_id: RequestId
    code: str
    message: str


ToWorker = Load | Chat | Embed | Rank | CountTokens | Render | Probe | Cancel
FromWorker = Loaded | Delta | Progress | Embedded | Ranked | Counted | Rendered | Status | Failed


# ---- the ids level: between the worker's text side and an engine ----


class Constraint(Protocol):
    """Which ids an answer may go on with. Belongs to one request; called from the engine's thread."""

    def allowed(self) -> bytes:
        """Packed bits of uint8 [vocabulary/8], lowest first: may the id come? Raises EngineError."""
        ...

    def limit(self, tokens: int) -> None:
        """At most so many ids will come, an end id included. Said once, before any is accepted."""
        ...

    def accept(self, token_id: int) -> None:
        """Takes the id that was chosen. Never blocks."""
        ...

    @property
    def forced(self) -> int:
        """Ids of the answer that had no alternative because it had to end before its limit."""
        ...


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`top_logprobs` -1: none wanted; 0: the sampled id's only; n: the n likeliest beside it.

    `end_ids` finish with `stop` and are not emitted as text. `constraint` needs an engine whose
    capabilities say `grammar`; an end id comes only where it allows one. With `shift` an answer
    that fills the context goes on: the first `keep_length` ids stay, half of the others go.
    What is kept of a request serves later ones of the same `cache_scope`, and others only where the
    first `system_length` ids, the system prompt, are the same. Where `images` lie, `prompt_ids` are
    `image_id`s: below 0, and equal only for the same image.
    """

    request_id: RequestId
    prompt_ids: tuple[int, ...]
    images: tuple[ImageSpan, ...] = ()
    sampling: Sampling = Sampling()
    max_tokens: int = -1
    context_length: int = 4096
    end_ids: frozenset[int] = frozenset()
    newline_ids: frozenset[int] = frozenset()
    top_logprobs: int = -1
    reproducible: bool = False
    constraint: Constraint | None = None
    shift: bool = False
    keep_length: int = 0
    cache_scope: str = ""
    system_length: int = 0


class Prefilled(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    request_id: RequestId
    done: int
    total: int
    cached: int = 0


class Sampled(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`top` holds (id, logprob) pairs, likeliest first. End ids are not announced by `Sampled`."""

    request_id: RequestId
    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`usage.completion_tokens` counts the end id too, as the field's servers do."""

    request_id: RequestId
    reason: FinishReason
    usage: Usage


TokenEvent = Prefilled | Sampled | Finished | Failed


class EngineError(Exception):
    """Something a user can be told. `code` is one of `backends.failure_codes`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
