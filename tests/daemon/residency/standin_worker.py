"""A worker without a model, for faults that a real one does not have. Speaks real frames.

`--greeting wrong|none`, `--deaf` ignores SIGTERM and end of file. A Load's `artifact` ends with
"fail", "device", "stall", "die" or the bytes it claims to hold ("…/1000"). A Chat's prompt says what it does:
"count N", "burst N SIZE" (N pieces at once), "hang" (answers probes only), "steps" (hangs, but its
engine steps), "wedge" (answers nothing), "die", "fail CODE". A hung chat ends when cancelled.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time

from backends import frames
from backends.types import (
    Cancel,
    Chat,
    Counted,
    CountTokens,
    Delta,
    Embed,
    Embedded,
    Failed,
    Load,
    Loaded,
    Probe,
    Progress,
    Render,
    Rendered,
    Status,
    Usage,
)


class StandIn:
    def __init__(self, connection: socket.socket, is_deaf: bool) -> None:
        self._connection = connection
        self._is_deaf = is_deaf
        self._hung: set[str] = set()
        self._steps = 0
        self._is_stepping = False

    def run(self) -> None:
        buffer = frames.FrameBuffer()
        while data := self._connection.recv(1 << 16):
            for message in buffer.feed(data):
                self._answer(message)
        while self._is_deaf:
            time.sleep(60)

    def _send(self, message) -> None:
        frames.send(self._connection, message)

    def _answer(self, message) -> None:
        match message:
            case Load():
                self._load(message)
            case Chat():
                self._chat(message)
            case Cancel(request_id=request_id):
                print("cancelled", request_id, flush=True)
                if request_id in self._hung:
                    self._hung.discard(request_id)
                    self._send(Delta(request_id=request_id, finish="cancelled", usage=Usage()))
            case Probe(request_id=request_id):
                self._steps += self._is_stepping
                self._send(Status(request_id=request_id, active=len(self._hung), steps=self._steps))
            case CountTokens(request_id=request_id):
                self._send(Counted(request_id=request_id, tokens=7))
            case Render(request_id=request_id, chat=chat):
                self._send(Rendered(request_id=request_id, prompt=f"<{chat.prompt}>"))
            case Embed(request_id=request_id, texts=texts):
                vectors = tuple(b"\0\0\0\0" for _ in texts)
                self._send(Embedded(request_id=request_id, vectors=vectors, json=(b"[0]",)))
            case _:
                pass

    def _load(self, load: Load) -> None:
        word = load.artifact.rpartition("/")[2].partition(".")[0]
        if word == "stall":
            return
        if word == "die":
            os._exit(3)
        if word in ("fail", "device"):
            code = "device" if word == "device" else "load"
            self._send(Failed(request_id=load.request_id, code=code, message="no such weights"))
            return
        self._send(Progress(request_id=load.request_id, done=1, total=2))
        self._send(
            Loaded(
                request_id=load.request_id,
                context_length=load.context_length,
                rows=load.rows,
                resident_bytes=int(word) if word.isdigit() else 1000,
                load_ns=1,
            )
        )

    def _chat(self, chat: Chat) -> None:
        word, *rest = (chat.prompt or "").split()
        if word == "die":
            self._send(Delta(request_id=chat.request_id, text="last words"))
            os.kill(os.getpid(), signal.SIGKILL)
        elif word == "wedge":
            time.sleep(600)
        elif word in ("hang", "steps"):
            self._is_stepping = word == "steps"
            self._hung.add(chat.request_id)
        elif word == "fail":
            self._send(Failed(request_id=chat.request_id, code=rest[0], message="as asked"))
        else:
            size = int(rest[1]) if word == "burst" else 1
            for number in range(int(rest[0])):
                text = f"{number} " if word == "count" else "x" * size
                self._send(Delta(request_id=chat.request_id, text=text))
            self._send(Delta(request_id=chat.request_id, finish="stop", usage=Usage()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int)
    parser.add_argument("--greeting", default="right")
    parser.add_argument("--deaf", action="store_true")
    given = parser.parse_args()
    if given.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = socket.socket(fileno=given.fd)
    if given.greeting == "right":
        frames.send(connection, frames.hello())  # pyright: ignore[reportArgumentType]
    elif given.greeting == "wrong":
        connection.sendall(frames.encode(frames.Hello(protocol=0, build="other")))
    print("stand-in is up", flush=True)
    StandIn(connection, given.deaf).run()


if __name__ == "__main__":
    sys.exit(main())
