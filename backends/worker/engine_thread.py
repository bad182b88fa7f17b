"""The one thread that owns the engine: it loads it, steps it and closes it.

Others talk to it through `put`; what it has to say is posted in batches, one per step, by a callable
that must only hand over. It blocks when there is no work. An error that escapes the engine is fatal:
nothing more is stepped, because what the runtime holds is unknown then.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

import msgspec

from backends.engine.contract import (
    Backend,
    Engine,
    EngineCapabilities,
    EngineStatus,
    Rests,
)
from backends.types import (
    EngineError,
    GenerateRequest,
    Load,
    RequestId,
    TokenEvent,
)
from backends.worker.embed_queue import EmbedQueue

_log = logging.getLogger(__name__)


# A pause this long: those who chat read or type now.
REST_AFTER_SECONDS = 2.0


# ---- to the engine thread ----


class Add(msgspec.Struct, frozen=True):
    request: GenerateRequest


class CancelRequest(msgspec.Struct, frozen=True):
    request_id: RequestId


class EmbedBatch(msgspec.Struct, frozen=True):
    request_id: RequestId
    batch: tuple[tuple[int, ...], ...]


class Close(msgspec.Struct, frozen=True):
    pass


Command = Add | CancelRequest | EmbedBatch | Close


# ---- from the engine thread ----


class EngineLoaded(msgspec.Struct, frozen=True):
    capabilities: EngineCapabilities
    load_ns: int


class Stepped(msgspec.Struct, frozen=True):
    """`moved` counts all events so far, and slices of embeddings."""

    events: list[TokenEvent]
    status: EngineStatus
    moved: int


class Vectors(msgspec.Struct, frozen=True):
    """`vectors` are float32 little-endian bytes, one per input, not normalised."""

    request_id: RequestId
    vectors: list[bytes]


class EmbedFailed(msgspec.Struct, frozen=True):
    request_id: RequestId
    error: EngineError


class EngineDied(msgspec.Struct, frozen=True):
    error: EngineError


Report = EngineLoaded | Stepped | Vectors | EmbedFailed | EngineDied


def as_engine_error(error: BaseException, code: str) -> EngineError:
    """What a user can be told of any exception; `code` where it brings none."""
    if isinstance(error, EngineError):
        return error
    if isinstance(error, MemoryError):
        return EngineError("memory", "out of memory")
    return EngineError(code, f"{type(error).__name__}: {error}")


class EngineThread:
    def __init__(
        self, backend: Callable[[], Backend], load: Load, post: Callable[[Report], None]
    ) -> None:
        """`backend` is called on the engine thread: importing a runtime may bind it to its thread."""
        self._backend = backend
        self._load = load
        self._post = post
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._embeds = EmbedQueue()
        self._moved = 0
        # A daemon thread: a runtime stuck in native code must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def put(self, command: Command) -> None:
        self._inbox.put(command)

    def close(self, timeout_seconds: float) -> bool:
        """True when the engine was closed in time."""
        self.put(Close())
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        engine: Engine | None = None
        code = "load"
        try:
            started = time.monotonic_ns()
            engine = self._backend().load(self._load)
            code = "internal"
            self._post(EngineLoaded(engine.capabilities, time.monotonic_ns() - started))
            while self._drain(engine):
                if self._embeds.has_work():
                    self._embed_slice(engine)
                events = engine.step()
                self._moved += len(events)
                self._post(Stepped(events, engine.status(), self._moved))
        except BaseException as error:  # noqa: BLE001  whatever it was, its requests must hear of it
            _log.exception("the engine failed (%s)", code)
            self._post(EngineDied(as_engine_error(error, code)))
        finally:
            _close_quietly(engine)

    def _drain(self, engine: Engine) -> bool:
        """Does what others asked for; waits while there is nothing to step. False: close."""
        has_news = False
        while True:
            is_busy = has_news or engine.has_work() or self._embeds.has_work()
            try:
                command = self._inbox.get_nowait() if is_busy else self._wait(engine)
            except queue.Empty:
                return True
            match command:
                case Add(request=request):
                    engine.add(request)
                    has_news = True
                case CancelRequest(request_id=request_id):
                    engine.cancel(request_id)
                    self._embeds.cancel(request_id)
                    has_news = True
                case EmbedBatch(request_id=request_id, batch=batch):
                    self._add_embed(request_id, batch)
                case Close():
                    return False

    def _wait(self, engine: Engine) -> Command:
        """The next command. In a longer pause the engine may do what nobody waits for."""
        pause = REST_AFTER_SECONDS if isinstance(engine, Rests) else None
        while True:
            try:
                return self._inbox.get(timeout=pause)
            except queue.Empty:
                pause = 0.0 if isinstance(engine, Rests) and engine.rest() else None

    def _add_embed(self, request_id: RequestId, batch: tuple[tuple[int, ...], ...]) -> None:
        if batch:
            self._embeds.add(request_id, batch)
        else:
            self._post(Vectors(request_id, []))

    def _embed_slice(self, engine: Engine) -> None:
        """Texts of several requests at once. One that fails is asked alone: it must fail alone."""
        part, begin = self._embeds.next_slice(), time.monotonic()
        try:
            vectors = engine.embed(part.batch)
        except (EngineError, MemoryError) as error:
            if len(dict(part.owners)) == 1:
                self._fail_embed(part.owners[0][0], error)
                return
            vectors = []
            for (request_id, _), ids in zip(part.owners, part.batch, strict=True):
                vectors.append(self._embed_one(engine, request_id, ids))
        self._moved += 1
        seconds = time.monotonic() - begin
        for request_id, finished in self._embeds.done(part, vectors, seconds):
            self._post(Vectors(request_id, finished))

    def _embed_one(self, engine: Engine, request_id: RequestId, ids: tuple[int, ...]) -> bytes:
        try:
            return engine.embed([ids])[0]
        except (EngineError, MemoryError) as error:
            self._fail_embed(request_id, error)
            return b""

    def _fail_embed(self, request_id: RequestId, error: Exception) -> None:
        """A second text of the same request finds it gone already."""
        if self._embeds.cancel(request_id):
            self._post(EmbedFailed(request_id, as_engine_error(error, "internal")))


def _close_quietly(engine: Engine | None) -> None:
    if engine is None:
        return
    try:
        engine.close()
    except Exception:  # noqa: BLE001  it is on its way out
        _log.exception("closing the engine failed")
