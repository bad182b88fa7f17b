"""The daemon's end of a real worker process, blocking; for tests."""

from __future__ import annotations

import pathlib
import socket
import struct
import subprocess
import sys
import time
from typing import Any, Self, TypeVar

from backends import frames
from backends.frames import Hello
from backends.scripted.make import write_artifact
from backends.scripted.script import Script
from backends.types import Chat, Delta, Failed, FromWorker, Load, Loaded, Message, ToWorker

T = TypeVar("T")
SCRIPTED = "backends.worker"
TINY = "tests.backends.worker.tiny_backend"


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def text_of(messages: list[FromWorker]) -> str:
    return "".join(message.text for message in messages if isinstance(message, Delta))


def is_closing(message: FromWorker) -> bool:
    return isinstance(message, Failed) or (isinstance(message, Delta) and bool(message.finish))


class WorkerClient:
    def __init__(self, module: str, log: pathlib.Path) -> None:
        self.connection, other = socket.socketpair()
        self.connection.settimeout(30)
        self.log = log
        with other, log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, "--fd", str(other.fileno())],
                pass_fds=[other.fileno()],
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()

    def greet(self) -> None:
        self.send(frames.hello())
        frames.check_hello(self._read_frame())

    def load(
        self,
        folder: pathlib.Path,
        backend: str,
        rows: int = 4,
        context_length: int = 4096,
        projector: str = "",
    ) -> FromWorker:
        self.greet()
        self.send(
            Load(
                request_id="load",
                backend=backend,
                artifact=str(folder),
                rows=rows,
                context_length=context_length,
                projector=projector,
            )
        )
        return self.read()

    def send(self, message: Hello | ToWorker) -> None:
        self.connection.sendall(frames.encode(message))  # type: ignore[arg-type]

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.connection.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def _read_frame(self) -> Hello | FromWorker:
        (length,) = struct.unpack("<I", self._exactly(4))
        return frames.decode_from_worker(self._exactly(length))

    def read(self) -> FromWorker:
        message = self._read_frame()
        assert not isinstance(message, Hello)
        return message

    def read_until_closed(self, *request_ids: str) -> dict[str, list[FromWorker]]:
        """Everything that comes until each request is closed; nothing else may come."""
        seen: dict[str, list[FromWorker]] = {request_id: [] for request_id in request_ids}
        still_open = set(request_ids)
        while still_open:
            message = self.read()
            assert message.request_id in still_open
            seen[message.request_id].append(message)
            if is_closing(message):
                still_open.remove(message.request_id)
        return seen

    def read_first(self, kind: type[T]) -> T:
        while True:
            message = self.read()
            if isinstance(message, kind):
                return message

    def chat(self, request_id: str, text: str, **options: object) -> None:
        self.send(Chat(request_id=request_id, messages=user(text), **options))  # type: ignore[arg-type]

    def exit_code(self, within_seconds: float = 10) -> int:
        return self.process.wait(within_seconds)


def scripted_worker(
    folder: pathlib.Path, script: Script, chat_template: str = "", **options: Any
) -> WorkerClient:
    """A loaded worker on a scripted model."""
    write_artifact(folder, script, chat_template=chat_template)
    client = WorkerClient(SCRIPTED, folder / "log")
    loaded = client.load(folder, "scripted", **options)
    assert isinstance(loaded, Loaded), loaded
    return client


def tiny_worker(folder: pathlib.Path, mood: str = "") -> WorkerClient:
    """A greeted worker on the tiny backend; the caller loads it."""
    write_artifact(folder, Script())
    (folder / "mood").write_text(mood)
    return WorkerClient(TINY, folder / "log")


def wait_until(condition, within_seconds: float = 10) -> None:
    deadline = time.monotonic() + within_seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
