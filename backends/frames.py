"""Frames between the daemon and its children: u32 little-endian length, then one msgpack value.

Standard library and msgspec only. The first frame each way is `Hello`; a child of another build is
refused by `check_hello`, because a half-upgraded installation must say so instead of misbehaving.
Unknown fields are ignored; unknown tags are an error.
"""

from __future__ import annotations

import asyncio
import hashlib
import pathlib
import socket
import struct
from functools import cache

import msgspec

from backends.types import FromWorker, ToWorker

PROTOCOL = 1
MAX_FRAME_BYTES = 64 << 20
_LENGTH = struct.Struct("<I")


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    protocol: int
    build: str


class FrameError(Exception):
    """The other side sent what is no frame of ours, or went away in the middle of one."""


_encoder = msgspec.msgpack.Encoder()
_to_worker = msgspec.msgpack.Decoder(Hello | ToWorker)
_from_worker = msgspec.msgpack.Decoder(Hello | FromWorker)


@cache
def build_id() -> str:
    """Changes whenever the types or the framing do: a digest of both source files."""
    here = pathlib.Path(__file__).parent
    digest = hashlib.sha256()
    for name in ("types.py", "frames.py"):
        digest.update((here / name).read_bytes())
    return digest.hexdigest()[:16]


def hello() -> Hello:
    return Hello(protocol=PROTOCOL, build=build_id())


def check_hello(message: object) -> None:
    """Raises FrameError unless `message` is a `Hello` of this very build."""
    if not isinstance(message, Hello):
        raise FrameError("the first frame was not a greeting")
    if (message.protocol, message.build) != (PROTOCOL, build_id()):
        raise FrameError("daemon and worker are of different builds; restart the daemon")


def encode(message: Hello | ToWorker | FromWorker) -> bytes:
    """One whole frame. Raises FrameError when it would be larger than MAX_FRAME_BYTES."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


def _body_length(header: bytes) -> int:
    (length,) = _LENGTH.unpack(header)
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
    return length


def decode_to_worker(body: bytes) -> Hello | ToWorker:
    try:
        return _to_worker.decode(body)
    except msgspec.MsgspecError as error:
        raise FrameError(f"unreadable frame: {error}") from error


def decode_from_worker(body: bytes) -> Hello | FromWorker:
    try:
        return _from_worker.decode(body)
    except msgspec.MsgspecError as error:
        raise FrameError(f"unreadable frame: {error}") from error


async def read_from_worker(reader: asyncio.StreamReader) -> Hello | FromWorker | None:
    """The next message of a worker; None at a clean end. The daemon's side."""
    try:
        header = await reader.readexactly(_LENGTH.size)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise FrameError("the worker ended inside a frame") from error
        return None
    except ConnectionError:
        return None
    try:
        body = await reader.readexactly(_body_length(header))
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise FrameError("the worker ended inside a frame") from error
    return decode_from_worker(body)


class FrameBuffer:
    """Cuts received bytes into frames. The worker's side; owned by its main thread."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[Hello | ToWorker]:
        """All messages completed by `data`, in order. Raises FrameError."""
        self._held += data
        messages: list[Hello | ToWorker] = []
        start = 0
        while len(self._held) - start >= _LENGTH.size:
            length = _body_length(bytes(self._held[start : start + _LENGTH.size]))
            end = start + _LENGTH.size + length
            if len(self._held) < end:
                break
            messages.append(decode_to_worker(bytes(self._held[start + _LENGTH.size : end])))
            start = end
        del self._held[:start]
        return messages


def send(connection: socket.socket, message: Hello | FromWorker) -> None:
    """Blocking send from a worker; the daemon always drains its end."""
    connection.sendall(encode(message))
