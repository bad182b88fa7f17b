"""Every request of one worker: what came from the daemon, what came from the engine, what to answer.

Main thread only; never touches the socket. Promise: each request gets one stream of answers that is
closed exactly once, and what goes wrong with one request ends that request only.
"""

from __future__ import annotations

import gc
import importlib
import logging
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from backends.engine.contract import Backend, EngineCapabilities, EngineStatus
from backends.text.answer_grammar import answer_grammar
from backends.text.conversation import Conversation
from backends.text.embedding import embedded, passage_ids
from backends.text.prompt import ModelText, context_length_of
from backends.text.ranking import PairForms, score_of
from backends.text.render_guard import resident_bytes
from backends.types import (
    Cancel,
    Chat,
    Counted,
    CountTokens,
    Embed,
    EngineError,
    Failed,
    FromWorker,
    Load,
    Loaded,
    Probe,
    Progress,
    Rank,
    Ranked,
    Render,
    Rendered,
    RequestId,
    Status,
    TokenEvent,
    ToWorker,
)
from backends.vision.sight import Sight
from backends.worker.engine_thread import (
    Add,
    CancelRequest,
    EmbedBatch,
    EmbedFailed,
    EngineDied,
    EngineLoaded,
    EngineThread,
    Stepped,
    Vectors,
    as_engine_error,
)
from backends.worker.grammars import GrammarReady
from backends.worker.hold import hold_artifact
from backends.worker.image_encoder import ImageEncoded, ImagesReady, tower_loader
from backends.worker.outbox import Report
from backends.worker.preparing import Preparing
from converters.artifact import ArtifactError

_log = logging.getLogger(__name__)

BACKENDS = {
    "onnx": "backends.onnx",
    "mlx": "backends.mlx",
    "scripted": "backends.scripted",
}
EXIT_ENGINE = 70
EXIT_LOAD = 71


def failed(request_id: RequestId, error: EngineError) -> Failed:
    return Failed(request_id=request_id, code=error.code, message=str(error))


class _PendingVectors(msgspec.Struct, frozen=True):
    """`prompt_tokens` went in; `dropped_tokens` of a ranking's documents did not."""

    request: Embed | Rank
    prompt_tokens: int
    dropped_tokens: int = 0
    are_probabilities: bool = False

    def answer(self, vectors: Sequence[bytes]) -> FromWorker:
        """Raises EngineError for what is no number."""
        match self.request:
            case Embed():
                return embedded(self.request, vectors, self.prompt_tokens)
            case Rank(request_id=request_id):
                return Ranked(
                    request_id=request_id,
                    scores=tuple(map(score_of, vectors)),
                    are_probabilities=self.are_probabilities,
                    prompt_tokens=self.prompt_tokens,
                    dropped_tokens=self.dropped_tokens,
                )


class Requests:
    """`exit_code` is None while the worker can go on; else it should leave with it."""

    def __init__(self, post: Callable[[Report], None], backends: Mapping[str, str]) -> None:
        self.exit_code: int | None = None
        self._post = post
        self._backends = backends
        self._load: Load | None = None
        self._engine: EngineThread | None = None
        self._model: ModelText | None = None
        self._capabilities: EngineCapabilities | None = None
        self._status: EngineStatus | None = None
        self._moved = 0
        self._conversations: dict[RequestId, Conversation] = {}
        self._embeds: dict[RequestId, _PendingVectors] = {}
        self._ranking: PairForms | None = None
        # Their conversations are open already.
        self._preparing = Preparing(post)

    # ---- from the daemon ----

    def handle(self, message: ToWorker) -> list[FromWorker]:
        """Answers that are ready at once; the others come through `take`."""
        try:
            return self._handle(message)
        except EngineError as error:
            return [failed(message.request_id, error)]
        except BaseException as error:  # noqa: BLE001  a panic in native code is no Exception
            _log.exception("request %s", message.request_id)
            return [failed(message.request_id, as_engine_error(error, "internal"))]

    def _handle(self, message: ToWorker) -> list[FromWorker]:
        request_id = message.request_id
        match message:
            case Load():
                return self._start(message)
            case Chat():
                return self._chat(message)
            case Embed():
                return self._embed(message)
            case Rank():
                return self._rank(message)
            case CountTokens(chat=chat):
                tokens = len(self._loaded()[1].prompt(chat).ids)
                return [Counted(request_id=request_id, tokens=tokens)]
            case Render(chat=chat):
                prompt = self._loaded()[1].prompt_text(chat)
                return [Rendered(request_id=request_id, prompt=prompt)]
            case Probe():
                return [self._state(request_id)]
            case Cancel():
                return self._cancel(request_id)

    def _start(self, load: Load) -> list[FromWorker]:
        if self._load is not None:
            raise EngineError("invalid", "this worker has its model already")
        self._load = load
        try:
            backend = self._backend(load.backend)
            folders = (load.artifact, *load.adapters, *filter(None, [load.projector]))
            for folder in folders:
                hold_artifact(pathlib.Path(folder))
            self._engine = EngineThread(backend, load, self._post)
            self._model, artifact = ModelText.load(pathlib.Path(load.artifact))
            if load.projector:
                sight = Sight.load(pathlib.Path(load.projector), artifact.embedding_length)
                self._model.sight = sight
                self._preparing.open_images(sight, tower_loader(backend, sight, load))
            if artifact.pooling == "rank":
                self._ranking = PairForms(self._model.tokenizer, artifact)
        except ArtifactError as error:
            self.exit_code = EXIT_LOAD
            raise EngineError("load", str(error)) from error
        except EngineError:
            self.exit_code = EXIT_LOAD
            raise
        return []

    def _backend(self, name: str) -> Callable[[], Backend]:
        if name not in self._backends:
            raise EngineError("load", f"there is no backend {name!r}")
        return lambda: importlib.import_module(self._backends[name]).backend

    def _loaded(self) -> tuple[EngineThread, ModelText, EngineCapabilities]:
        if self._engine is None or self._model is None or self._capabilities is None:
            raise EngineError("invalid", "no model is loaded yet")
        return self._engine, self._model, self._capabilities

    def _chat(self, chat: Chat) -> list[FromWorker]:
        engine, model, capabilities = self._loaded()
        if chat.request_id in self._conversations:
            _log.error("request %s was sent twice; the second is ignored", chat.request_id)
            return []
        if not capabilities.generate:
            raise EngineError("unsupported", "this model does not generate text")
        context_length = context_length_of(chat, capabilities)
        prompt = model.prompt(chat, context_length)
        request = model.request(chat, prompt, context_length)
        # It lives as long as the answer, the images' files need not.
        conversation = Conversation(chat, msgspec.structs.replace(prompt, images=()), model)
        spec = None
        if chat.format is not None or chat.required_tools:
            spec = answer_grammar(
                chat.format, conversation.markup, model.tokenizer, chat.required_tools
            )
        if spec is None and not prompt.images:
            engine.put(Add(request))
        else:
            self._preparing.add(request, prompt, spec, model, capabilities)
        self._conversations[chat.request_id] = conversation
        return []

    def _embed(self, embed: Embed) -> list[FromWorker]:
        engine, model, capabilities = self._loaded()
        if not capabilities.embed:
            raise EngineError("unsupported", "this model cannot make embeddings")
        batch = passage_ids(model.tokenizer, embed, capabilities.context_length)
        self._embeds[embed.request_id] = _PendingVectors(embed, sum(map(len, batch)))
        engine.put(EmbedBatch(embed.request_id, batch))
        return []

    def _rank(self, rank: Rank) -> list[FromWorker]:
        engine, _, capabilities = self._loaded()
        if self._ranking is None:
            raise EngineError("unsupported", "this model cannot rank documents")
        batch, dropped = self._ranking.pair_ids(rank, capabilities.context_length)
        pending = _PendingVectors(
            rank, sum(map(len, batch)), dropped, self._ranking.are_probabilities
        )
        self._embeds[rank.request_id] = pending
        engine.put(EmbedBatch(rank.request_id, batch))
        return []

    def _cancel(self, request_id: RequestId) -> list[FromWorker]:
        """A chat is closed by the engine's own event; what runs elsewhere is left to itself."""
        if self._preparing.remove(request_id):
            del self._conversations[request_id]
            return [failed(request_id, EngineError("cancelled", "cancelled"))]
        if request_id in self._conversations and self._engine is not None:
            self._engine.put(CancelRequest(request_id))
        elif self._embeds.pop(request_id, None) is not None:
            if self._engine is not None:
                self._engine.put(CancelRequest(request_id))
            return [failed(request_id, EngineError("cancelled", "cancelled"))]
        return []

    def _state(self, request_id: RequestId) -> Status:
        status = self._status
        cached = status.cached_bytes if status else 0
        return Status(
            request_id=request_id,
            active=status.active if status else 0,
            waiting=status.waiting if status else 0,
            kv_bytes=status.kv_bytes if status else 0,
            cached_bytes=cached + self._preparing.cached_bytes,
            steps=status.steps if status else 0,
            resident_bytes=resident_bytes(),
            loaded=self._capabilities is not None,
            moved=self._moved + self._preparing.moved,
        )

    # ---- from the engine ----

    def take(self, report: Report) -> list[FromWorker]:
        match report:
            case EngineLoaded():
                return self._take_loaded(report)
            case Stepped(events=events, status=status, moved=moved):
                self._status, self._moved = status, moved
                return self._take_events(events)
            case GrammarReady() | ImagesReady():
                return self._take_prepared(report)
            case ImageEncoded(request_id=request_id):
                total = self._preparing.positions(request_id)
                return [Progress(request_id=request_id, done=0, total=total)] if total else []
            case Vectors():
                return self._take_vectors(report)
            case EmbedFailed(request_id=request_id, error=error):
                known = self._embeds.pop(request_id, None)
                return [failed(request_id, error)] if known else []
            case EngineDied(error=error):
                return self._take_death(error)

    def _take_loaded(self, report: EngineLoaded) -> list[FromWorker]:
        """What was loaded stays: the collector need never look at it again."""
        if self._load is None or self.exit_code is not None:
            return []
        self._capabilities = capabilities = report.capabilities
        gc.collect()
        gc.freeze()
        names = ("generate", "embed", "grammar", "adapters", "reproducible_batches")
        found = [name for name in names if getattr(capabilities, name)]
        found += ["rank"] if self._ranking else []
        found += ["vision"] if self._preparing.takes_images and capabilities.image_width else []
        return [
            Loaded(
                request_id=self._load.request_id,
                context_length=capabilities.context_length,
                rows=capabilities.rows,
                resident_bytes=capabilities.device_bytes or resident_bytes(),
                load_ns=report.load_ns,
                capabilities=tuple(found),
                device=capabilities.device,
                numbers=capabilities.numbers,
                steps=capabilities.steps,
            )
        ]

    def _take_prepared(self, report: GrammarReady | ImagesReady) -> list[FromWorker]:
        """The request goes to the engine once it has all, unless it was taken back meanwhile."""
        found = self._preparing.take(report)
        if isinstance(found, EngineError):
            del self._conversations[report.request_id]
            return [failed(report.request_id, found)]
        if found is not None and self._engine is not None:
            self._engine.put(Add(found))
        return []

    def _take_events(self, events: list[TokenEvent]) -> list[FromWorker]:
        by_request: dict[RequestId, list[TokenEvent]] = {}
        for event in events:
            by_request.setdefault(event.request_id, []).append(event)
        messages: list[FromWorker] = []
        for request_id, own_events in by_request.items():
            conversation = self._conversations.get(request_id)
            if conversation is not None:
                messages += self._advance(conversation, own_events)
        return messages

    def _advance(self, conversation: Conversation, events: list[TokenEvent]) -> list[FromWorker]:
        request_id = conversation.request_id
        had_stopped = conversation.has_stopped
        try:
            messages = conversation.take(events)
        except Exception as error:  # noqa: BLE001  it ends this request, not the worker
            _log.exception("request %s", request_id)
            self._forget(request_id, cancel=True)
            return [failed(request_id, as_engine_error(error, "internal"))]
        if conversation.is_over:
            self._forget(request_id, cancel=False)
        elif conversation.has_stopped and not had_stopped and self._engine is not None:
            self._engine.put(CancelRequest(request_id))
        return messages

    def _forget(self, request_id: RequestId, *, cancel: bool) -> None:
        self._conversations.pop(request_id, None)
        if cancel and self._engine is not None:
            self._engine.put(CancelRequest(request_id))

    def _take_vectors(self, report: Vectors) -> list[FromWorker]:
        pending = self._embeds.pop(report.request_id, None)
        if pending is None:
            return []
        try:
            return [pending.answer(report.vectors)]
        except EngineError as error:
            return [failed(report.request_id, error)]

    def _take_death(self, error: EngineError) -> list[FromWorker]:
        """Nothing can be answered any more; a load that failed has no requests yet."""
        if self.exit_code is not None:
            return []
        is_loading = self._capabilities is None and self._load is not None
        self.exit_code = EXIT_LOAD if is_loading else EXIT_ENGINE
        messages = self.abandon(error)
        if is_loading and self._load is not None:
            messages.append(failed(self._load.request_id, error))
        return messages

    # ---- the end ----

    def abandon(self, error: EngineError) -> list[FromWorker]:
        """Closes every open request with `error`."""
        open_ids = [*self._conversations, *self._embeds]
        self._conversations.clear()
        self._embeds.clear()
        self._preparing.clear()
        return [failed(request_id, error) for request_id in open_ids]

    def close(self, timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        self._preparing.close(0)
        if self._engine is not None and not self._engine.close(timeout_seconds):
            _log.warning("the engine did not close in %g s", timeout_seconds)
        if not self._preparing.close(deadline - time.monotonic()):
            _log.warning("the vision tower did not close in %g s", timeout_seconds)
