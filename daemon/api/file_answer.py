"""A file's bytes as an answer, or a range of them: read in slices, never held whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import re
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from litestar import Response
from litestar.types import ASGIApp, Receive, Scope, Send

from daemon.api.framing import ReaderStuck, patience, send_body, while_connected
from daemon.errors import NotFound

_SLICE_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class FileAnswer(Response[bytes]):
    """Status 200, 206 for one range, or 416 for one beyond the end. Other forms of ranges are ignored.

    The file is opened here, so that what is removed meanwhile is still sent. Raises NotFound.
    """

    def __init__(
        self,
        path: pathlib.Path,
        *,
        wanted_range: str = "",
        has_body: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(b"")
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise NotFound("no such blob") from error
        self._size = os.fstat(self._descriptor).st_size
        self._wanted = requested(wanted_range, self._size)
        self._has_body = has_body
        self._extra = dict(headers or {})

    def to_asgi_response(self, *_: Any, **__: Any) -> Any:
        app: ASGIApp = self._run
        return app

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(self._send(send), receive)
        finally:
            os.close(self._descriptor)

    async def _send(self, send: Send) -> None:
        begin, end = self._wanted or (0, 0)
        is_part = self._wanted is None or end - begin < self._size
        status = 416 if self._wanted is None else 206 if is_part else 200
        found = {"content-length": str(end - begin), "accept-ranges": "bytes"}
        if status == 206:
            found["content-range"] = f"bytes {begin}-{end - 1}/{self._size}"
        if status == 416:
            found["content-range"] = f"bytes */{self._size}"
        headers = [(k.lower().encode(), v.encode()) for k, v in (self._extra | found).items()]
        with contextlib.suppress(ReaderStuck):
            async with patience():
                await send({"type": "http.response.start", "status": status, "headers": headers})
            async for data in self._slices(begin, end if self._has_body else begin):
                async with patience():
                    await send_body(send, data, more=True)
            async with patience():
                await send_body(send, b"", more=False)

    async def _slices(self, begin: int, end: int) -> AsyncGenerator[bytes, None]:
        """Ends early for a file that became shorter: the client sees the length that is missing."""
        while begin < end:
            count = min(_SLICE_BYTES, end - begin)
            data = await asyncio.to_thread(os.pread, self._descriptor, count, begin)
            if not data:
                return
            yield data
            begin += len(data)


def requested(header: str, size: int) -> tuple[int, int] | None:
    """(first byte, end) that a Range header asks for; all of it without one; None beyond the end."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or not (match[1] or match[2]):
        return 0, size
    if not match[1]:
        last = int(match[2])
        return (max(0, size - last), size) if last and size else None
    begin, end = int(match[1]), int(match[2]) + 1 if match[2] else size
    if begin >= end and match[2]:
        return 0, size
    return (begin, min(end, size)) if begin < size else None
