"""Blocking work in a thread that is never left running behind a cancelled caller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def finished_in_thread(
    function: Callable[_P, _T], *arguments: _P.args, **keywords: _P.kwargs
) -> _T:
    """The result. Cancelled, it first waits for the thread's end: files change hands safely."""
    task = asyncio.ensure_future(asyncio.to_thread(function, *arguments, **keywords))
    is_cancelled = False
    while not task.done():
        try:
            await asyncio.shield(asyncio.wait({task}))
        except asyncio.CancelledError:
            is_cancelled = True
    if is_cancelled:
        task.exception()  # taken, so that nobody is told of it later
        raise asyncio.CancelledError
    return task.result()
