"""The main thread's loop: socket in, engine's reports in, frames out. Owns the socket.

Sending blocks: the daemon always drains its end. The loop ends at end of file, at SIGTERM, when the
daemon is of another build, or when the engine died.
"""

from __future__ import annotations

import logging
import selectors
import socket
from collections.abc import Iterable, Mapping

from backends import frames
from backends.frames import FrameBuffer, FrameError, Hello
from backends.types import EngineError, FromWorker
from backends.worker.lifeline import GRACE_SECONDS, Watchdog, on_terminate, reason_to_leave
from backends.worker.outbox import Outbox
from backends.worker.requests import Requests, failed

_log = logging.getLogger(__name__)

EXIT_PROTOCOL = 76
_RECEIVE_BYTES = 256 << 10
# Less than the watchdog's grace, so that an orderly end comes first.
_CLOSE_SECONDS = GRACE_SECONDS - 1.0


class Worker:
    def __init__(self, connection: socket.socket, backends: Mapping[str, str]) -> None:
        connection.setblocking(True)
        self._connection = connection
        self._buffer = FrameBuffer()
        self._outbox = Outbox()
        self._requests = Requests(self._outbox.post, backends)
        self._watchdog = Watchdog(connection)
        self._is_greeted = False
        self._is_told_to_leave = False
        self._exit_code: int | None = None

    def run(self) -> int:
        """The process's exit code."""
        on_terminate(self._terminate)
        self._send_frames(frames.encode(frames.hello()))
        with selectors.DefaultSelector() as selector:
            selector.register(self._connection, selectors.EVENT_READ, self._receive)
            selector.register(self._outbox.bell, selectors.EVENT_READ, self._report)
            while self._exit_code is None:
                for key, _ in selector.select():
                    key.data()
                self._decide()
        self._watchdog.arm()
        self._requests.close(_CLOSE_SECONDS)
        return self._exit_code

    def _terminate(self) -> None:
        """Runs as a signal handler, between two steps of anything on this thread."""
        self._is_told_to_leave = True
        self._watchdog.arm()
        self._outbox.ring()

    def _decide(self) -> None:
        """Whether the loop is over, and with which code."""
        if self._exit_code is not None:
            return
        if self._is_told_to_leave:
            self._send(self._requests.abandon(EngineError("died", reason_to_leave())))
            self._exit_code = 0
        elif self._requests.exit_code is not None:
            self._exit_code = self._requests.exit_code

    def _receive(self) -> None:
        try:
            data = self._connection.recv(_RECEIVE_BYTES)
        except ConnectionError:
            data = b""
        if not data:
            self._exit_code = 0
            return
        try:
            for message in self._buffer.feed(data):
                if not self._is_greeted:
                    frames.check_hello(message)
                    self._is_greeted = True
                elif isinstance(message, Hello):
                    raise FrameError("a second greeting")
                else:
                    self._send(self._requests.handle(message))
        except FrameError as error:
            _log.error("%s", error)
            self._exit_code = EXIT_PROTOCOL

    def _report(self) -> None:
        messages: list[FromWorker] = []
        for report in self._outbox.drain():
            messages += self._requests.take(report)
        self._send(messages)

    def _send(self, messages: Iterable[FromWorker]) -> None:
        """All frames of one turn in one system call."""
        self._send_frames(b"".join(map(_encoded, messages)))

    def _send_frames(self, data: bytes) -> None:
        if not data or self._exit_code is not None:
            return
        try:
            self._connection.sendall(data)
        except ConnectionError:
            self._exit_code = 0


def _encoded(message: FromWorker) -> bytes:
    """An answer too large for a frame becomes the failure of its request."""
    try:
        return frames.encode(message)
    except FrameError as error:
        _log.error("request %s: %s", message.request_id, error)
        return frames.encode(failed(message.request_id, EngineError("internal", str(error))))
