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

from backends.types import (
    Backend,
    Engine,
    EngineCapabilities,
    EngineError,
    EngineStatus,
    GenerateRequest,
    Load,
    RequestId,
    TokenEvent,
)

_log = logging.getLogger(__name__)


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
    events: list[TokenEvent]
    status: EngineStatus


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
                events = engine.step()
                self._post(Stepped(events, engine.status()))
        except BaseException as error:  # noqa: BLE001  whatever it was, its requests must hear of it
            _log.exception("the engine failed (%s)", code)
            self._post(EngineDied(as_engine_error(error, code)))
        finally:
            _close_quietly(engine)

    def _drain(self, engine: Engine) -> bool:
        """Does what others asked for; waits while there is nothing to step. False: close."""
        has_news = False
        while True:
            try:
                command = self._inbox.get(block=not has_news and not engine.has_work())
            except queue.Empty:
                return True
            match command:
                case Add(request=request):
                    engine.add(request)
                    has_news = True
                case CancelRequest(request_id=request_id):
                    engine.cancel(request_id)
                    has_news = True
                case EmbedBatch():
                    self._embed(engine, command)
                case Close():
                    return False

    def _embed(self, engine: Engine, command: EmbedBatch) -> None:
        """A failing batch fails alone: it leaves nothing behind in the engine."""
        try:
            vectors = engine.embed(command.batch)
        except (EngineError, MemoryError) as error:
            failure = as_engine_error(error, "internal")
            self._post(EmbedFailed(command.request_id, failure))
        else:
            self._post(Vectors(command.request_id, vectors))


def _close_quietly(engine: Engine | None) -> None:
    if engine is None:
        return
    try:
        engine.close()
    except Exception:  # noqa: BLE001  it is on its way out
        _log.exception("closing the engine failed")
