"""How answers leave: one encoder, one streaming response, and each dialect's `Form` of sending.

`EventAnswer` owns the generator that it is given: whatever happens (the end, an error, a client
that leaves, also before the first event) it is closed before the response returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import msgspec
from litestar import Response
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp, Receive, Scope, Send

from daemon.errors import Busy, DaemonError, Internal, WorkerDied

log = logging.getLogger(__name__)

JSON = "application/json; charset=utf-8"
PROGRESS_JSON = "application/json"
NDJSON = "application/x-ndjson"
EVENT_STREAM = "text/event-stream"
# A reader that takes nothing for so long is gone, whatever its socket says.
SEND_SECONDS = 120.0
# Answers take seconds; whoever was refused for lack of room need not ask sooner.
RETRY_SECONDS = 5
_encode = msgspec.json.Encoder().encode
_Event = TypeVar("_Event", bound=msgspec.Struct)


class ErrorBody(msgspec.Struct, frozen=True, omit_defaults=True):
    error: str
    signin_url: str = ""


@dataclass(frozen=True)
class Form:
    """What dialects differ in when they send. `frame` makes the bytes of one event of a stream.

    `end` follows the last event of a stream that went well. An error is the object `error_body`,
    alone with a status and `error_headers`, or as the last event of a stream (`error_frame`).
    """

    media_type: str
    frame: Callable[[Any], bytes]
    error_body: Callable[[DaemonError], Any]
    error_frame: Callable[[Any], bytes]
    error_headers: Callable[[DaemonError], dict[str, str]]
    end: bytes = b""


def encoded(value: Any) -> bytes:
    """Compact JSON, UTF-8."""
    return _encode(value)


def event_frame(value: Any, event: str = "") -> bytes:
    """A server-sent event with `value` as JSON; `event` is its type, which some dialects name."""
    head = f"event: {event}\n".encode() if event else b""
    return head + b"data: " + _encode(value) + b"\n\n"


def timestamp() -> str:
    """Now, UTC, RFC 3339 with six digits: more of them break older readers."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def json_response(
    body: Any, status: int = 200, headers: dict[str, str] | None = None
) -> Response[bytes]:
    return Response(_encode(body), status_code=status, media_type=JSON, headers=headers)


class _Refused(DaemonError):
    """What the router itself refused, a body that is too large, say."""

    def __init__(self, refusal: HTTPException) -> None:
        super().__init__(refusal.detail)
        self._status = refusal.status_code

    @property
    def status(self) -> int:
        return self._status


def as_daemon_error(error: BaseException) -> DaemonError:
    """What the client is told; anything unforeseen is logged with its traceback and stays here."""
    if isinstance(error, DaemonError):
        return error
    if isinstance(error, HTTPException):
        return _Refused(error)
    log.error("a request failed", exc_info=error)
    return Internal("internal error, check the daemon's log for details")


def error_headers(error: DaemonError) -> dict[str, str]:
    """A full queue says when to come again."""
    return {"Retry-After": str(RETRY_SECONDS)} if isinstance(error, Busy) else {}


def retry_headers(error: DaemonError) -> dict[str, str]:
    """As `error_headers`, for official clients that try every 5xx again: most of ours fail once more."""
    if error.status >= 500 and not isinstance(error, Busy | WorkerDied):
        return {"x-should-retry": "false"}
    return error_headers(error)


def _line(value: Any) -> bytes:
    return _encode(value) + b"\n"


LINES = Form(
    media_type=NDJSON,
    frame=_line,
    error_body=lambda error: ErrorBody(error.message),
    error_frame=_line,
    error_headers=error_headers,
)


def error_response(error: DaemonError, form: Form = LINES) -> Response[bytes]:
    return json_response(form.error_body(error), error.status, form.error_headers(error))


def error_handlers(form: Form) -> dict[type[Exception], Callable[..., Response[bytes]]]:
    """What a dialect's controllers do with whatever their handlers raise."""

    def answer(_: Any, error: Exception) -> Response[bytes]:
        return error_response(as_daemon_error(error), form)

    return {HTTPException: answer, Exception: answer}


def last_event(events: list[_Event]) -> _Event:
    """The answer of progress routes when nobody wants the stream."""
    return events[-1]


async def while_connected(answering: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Runs it to its end, or until the client has left; it is over when this returns."""
    tasks = [asyncio.ensure_future(answering), asyncio.ensure_future(_disconnected(receive))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventAnswer(Response[bytes], Generic[_Event]):
    """Sends `events` as they come, or, without `stream`, `merge` of them all as one object."""

    def __init__(
        self,
        events: AsyncGenerator[_Event, None],
        *,
        stream: bool,
        merge: Callable[[list[_Event]], _Event] = last_event,
        media_type: str = JSON,
        headers: Mapping[str, str] | None = None,
        form: Form = LINES,
    ) -> None:
        super().__init__(b"", media_type=form.media_type if stream else media_type)
        self._form = form
        self._events = events
        self._stream = stream
        self._merge = merge
        self._extra = [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()]
        self._started = False

    def to_asgi_response(self, *_: Any, **__: Any) -> Any:
        app: ASGIApp = self._run
        return app

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(self._answer(send), receive)
        finally:
            await self._events.aclose()

    async def _answer(self, send: Send) -> None:
        try:
            if self._stream:
                await self._send_events(send)
            else:
                whole = self._merge([event async for event in self._events])
                await self._send_whole(send, 200, whole)
        except ReaderStuck:
            log.info("a client stopped reading its answer")
        except Exception as error:  # noqa: BLE001  the last place where it can become an answer
            await self._send_error(send, as_daemon_error(error))

    async def _start(self, send: Send, status: int, media_type: str) -> None:
        self._started = True
        headers = [(b"content-type", media_type.encode()), *self._extra]
        await send({"type": "http.response.start", "status": status, "headers": headers})

    async def _send_events(self, send: Send) -> None:
        form = self._form
        async for event in self._events:
            async with patience():
                if not self._started:
                    await self._start(send, 200, form.media_type)
                await send_body(send, form.frame(event), more=True)
        async with patience():
            if not self._started:
                await self._start(send, 200, form.media_type)
            await send_body(send, form.end, more=False)

    async def _send_whole(self, send: Send, status: int, body: Any) -> None:
        data = _encode(body)
        self._extra.append((b"content-length", str(len(data)).encode()))
        media_type = PROGRESS_JSON if self._stream else str(self.media_type)
        async with patience():
            await self._start(send, status, media_type)
            await send_body(send, data, more=False)

    async def _send_error(self, send: Send, error: DaemonError) -> None:
        body = self._form.error_body(error)
        if not self._started:
            headers = self._form.error_headers(error).items()
            self._extra += [(key.lower().encode(), value.encode()) for key, value in headers]
            await self._send_whole(send, error.status, body)
            return
        async with patience():
            await send_body(send, self._form.error_frame(body), more=False)


class ReaderStuck(Exception):
    """The client takes nothing any more."""


@contextlib.asynccontextmanager
async def patience() -> AsyncGenerator[None, None]:
    """Around sending only: a timeout inside the events is another matter. Raises ReaderStuck."""
    try:
        async with asyncio.timeout(SEND_SECONDS):
            yield
    except TimeoutError:
        raise ReaderStuck from None


async def send_body(send: Send, body: bytes, *, more: bool) -> None:
    """One piece of an answer's body."""
    await send({"type": "http.response.body", "body": body, "more_body": more})
