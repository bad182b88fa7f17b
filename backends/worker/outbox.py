"""What other threads hand to the main thread, and the bell that wakes it."""

from __future__ import annotations

import socket
from collections import deque

from backends.worker.engine_thread import Report as EngineReport
from backends.worker.grammars import GrammarReady
from backends.worker.image_encoder import ImageEncoded, ImagesReady

Report = EngineReport | GrammarReady | ImageEncoded | ImagesReady


class Outbox:
    """`post` from any thread, `drain` from the main thread, `ring` from anywhere."""

    def __init__(self) -> None:
        self.bell, self._clapper = socket.socketpair()
        self.bell.setblocking(False)
        self._clapper.setblocking(False)
        self._reports: deque[Report] = deque()

    def post(self, report: Report) -> None:
        self._reports.append(report)
        self.ring()

    def ring(self) -> None:
        try:
            self._clapper.send(b"\0")
        except BlockingIOError:
            return  # it is ringing already

    def drain(self) -> list[Report]:
        """The bell first: a report posted meanwhile rings it again."""
        try:
            while self.bell.recv(4096):
                pass
        except BlockingIOError:
            pass
        reports = []
        while self._reports:
            reports.append(self._reports.popleft())
        return reports
