"""One converter or inspector as a child process: its lines, its failures, its end.

The child holds the reading end of a pipe from us: end of file there means that the daemon is gone
and it shall leave. However this ends, the child is dead afterwards and its staging folder gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pathlib
import shutil
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence

import msgspec

from converters import artifact
from daemon.errors import DaemonError, Invalid, LoadFailed, NoSpace, NotYet
from daemon.models.priority import set_background

log = logging.getLogger(__name__)

_LINE_BYTES = 1 << 20
_STDERR_TAIL_BYTES = 8 << 10
_LEAVE_SECONDS = 5.0
_PRIORITY_SECONDS = 0.5
_STAGING = ".staging-"


class ConverterLine(msgspec.Struct, frozen=True):
    """A line of the child. `done` is bytes in a phase, or true in the last line of a success."""

    phase: str = ""
    done: int | bool = 0
    total: int = 0
    error: str = ""
    kind: str = ""


_ERRORS: dict[str, type[DaemonError]] = {
    "malformed": Invalid,
    "unsupported": NotYet,
    "space": NoSpace,
}


async def run_converter(
    command: Sequence[str], report: Callable[[ConverterLine], None], is_busy: Callable[[], bool]
) -> None:
    """Runs to the end; cancelling kills the child. Raises the DaemonError that its failure means.

    `is_busy` is asked while it runs whether it has to make way for requests.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        limit=_LINE_BYTES,
        cwd=pathlib.Path(artifact.__file__).parent.parent,
        start_new_session=True,  # Ctrl-C at our terminal is ours to handle
    )
    keeping = asyncio.create_task(_keep_priority(process.pid, is_busy))
    complaints = asyncio.create_task(_stderr_tail(process))
    try:
        last = await _follow(process, report)
        code = await process.wait()
        if code != 0 or last.done is not True:
            raise _failure(code, last, await complaints)
    finally:
        keeping.cancel()
        await asyncio.shield(_end(process))


async def _follow(process: Process, report: Callable[[ConverterLine], None]) -> ConverterLine:
    """The last line that could be understood, after reporting each."""
    assert process.stdout is not None
    last = ConverterLine()
    while line := await _next_line(process.stdout):
        with contextlib.suppress(msgspec.MsgspecError):
            last = msgspec.json.decode(line, type=ConverterLine)
            if last.phase:
                report(last)
    return last


async def _next_line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except ValueError as error:
        raise LoadFailed("the converter answered with an endless line") from error


async def _stderr_tail(process: Process) -> str:
    assert process.stderr is not None
    tail = b""
    while piece := await process.stderr.read(_STDERR_TAIL_BYTES):
        tail = (tail + piece)[-_STDERR_TAIL_BYTES:]
    return tail.decode(errors="replace")


async def _keep_priority(pid: int, is_busy: Callable[[], bool]) -> None:
    was_busy = False
    while True:
        if is_busy() != was_busy:
            was_busy = not was_busy
            set_background(pid, was_busy)
        await asyncio.sleep(_PRIORITY_SECONDS)


def _failure(code: int, last: ConverterLine, stderr: str) -> DaemonError:
    if stderr:
        log.warning("the converter ended with code %d: %s", code, stderr)
    if last.error:
        return _ERRORS.get(last.kind, LoadFailed)(last.error)
    if code < 0:
        return LoadFailed(f"the converter was killed ({_signal_name(-code)})")
    return LoadFailed(f"the converter ended without an answer (exit code {code})")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


async def _end(process: Process) -> None:
    """SIGTERM, then SIGKILL; returns when the child is reaped."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _LEAVE_SECONDS)


def sweep_staging(artifacts: pathlib.Path) -> None:
    """Removes the staging folders of converters that are dead. Blocking."""
    for folder in list(artifacts.glob(f"*/*{_STAGING}*")):
        final, _, pid = folder.name.rpartition(_STAGING)
        if pid.isdigit() and not _is_converting(int(pid), folder.parent / final):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()  # only when nothing else is left of this source


def discard_folder(folder: pathlib.Path) -> None:
    """Renames first: what is half removed must not look like an artifact. Blocking."""
    doomed = folder.with_name(f"{folder.name}{_STAGING}0")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _is_converting(pid: int, final: pathlib.Path) -> bool:
    """Whether that process lives and writes there; the number alone may be somebody else's now."""
    try:
        command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return not pathlib.Path("/proc/self").exists() and _is_alive(pid)
    except OSError:
        return True
    return os.fsencode(final) in command.split(b"\0")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
