"""One worker process as the daemon sees it: spawned, greeted, asked, watched, ended, reaped.

Promises: the socket is always drained; every request started here ends exactly once, also when the
process dies; a process started here never outlives `stop`. It knows nothing of models' names,
memory or queues: that is `Residency`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Sequence
from typing import TypeVar

from backends import frames
from backends.types import (
    Cancel,
    Chat,
    CountTokens,
    Embed,
    FromWorker,
    Load,
    Loaded,
    Probe,
    Rank,
    Render,
    RequestId,
    Status,
)
from daemon.errors import Busy, DaemonError, Internal, Invalid, LoadFailed, WorkerDied
from daemon.residency.answer import AnswerStream, SingleAnswer
from daemon.residency.liveness import Liveness, WorkerLimits
from daemon.residency.spawning import WORKER_COMMAND, start_process

# Clients match the first six words.
DIED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an "
    "internal error, check Hearth's logs for details"
)
_WATCH_ID = "watch"
_EXIT_STATUS_SECONDS = 1.0

Question = Load | Chat | Embed | Rank | CountTokens | Render | Probe
SingleT = TypeVar("SingleT", bound=SingleAnswer)
_log = logging.getLogger("hearth.worker")


class WorkerProcess:
    """Made by `spawn`. `start` and `ask` may be called by many tasks at once."""

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        limits: WorkerLimits,
    ) -> None:
        self.name = name
        self._process = process
        self._reader = reader
        self._writer = writer
        self._limits = limits
        self._streams: dict[RequestId, AnswerStream] = {}
        self._is_open = True
        self._is_loaded = False
        self._killed_because = ""
        self._has_died = False
        self._is_given_up = False
        self._liveness = Liveness(limits)
        self._has_requests = asyncio.Event()
        self._ended = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None
        self._logging = asyncio.create_task(self._copy_log())
        self._receiving: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "open" if self._is_open else "ended" if self._ended.is_set() else "ending"
        return f"<WorkerProcess {self.name} {state}, pid {self.pid}, {self.active} requests>"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def active(self) -> int:
        """Requests that the worker still owes an answer to."""
        return len(self._streams)

    @property
    def has_died(self) -> bool:
        """Whether it ended unasked, or was killed because it was wedged."""
        return self._has_died

    @property
    def is_stalled(self) -> bool:
        """Whether it owes answers and has long shown no sign of working on them."""
        is_watched = self._is_loaded and bool(self._streams)
        return bool(self._killed_because) or (is_watched and self._liveness.is_stalled)

    @property
    def is_lost(self) -> bool:
        """Whether it lives on though it was killed: a driver, or a disk, holds it."""
        return self._is_given_up and self._process.returncode is None

    @property
    def is_alive(self) -> bool:
        """Whether a new request can be started."""
        return self._is_open

    async def wait_ended(self) -> None:
        """Returns when the process is gone and reaped, or given up: then `is_lost`."""
        await self._ended.wait()

    # ---- birth ----

    @classmethod
    async def spawn(
        cls,
        name: str,
        *,
        command: Sequence[str] = WORKER_COMMAND,
        limits: WorkerLimits = WorkerLimits(),  # noqa: B008  (frozen)
    ) -> WorkerProcess:
        """Starts a process and exchanges greetings. Raises LoadFailed; leaves no process then."""
        process, reader, writer = await start_process(command)
        worker = cls(name, process, reader, writer, limits)
        try:
            await worker._greet()
        except BaseException:
            await worker.stop()
            raise
        worker._receiving = asyncio.create_task(worker._receive())
        worker._watching = asyncio.create_task(worker._watch())
        return worker

    async def _greet(self) -> None:
        try:
            async with asyncio.timeout(self._limits.hello_seconds):
                self._writer.write(frames.encode(frames.hello()))
                message = await frames.read_from_worker(self._reader)
            if message is None:
                raise LoadFailed(f"{DIED}: {await self._exit_text()}")
            frames.check_hello(message)
        except TimeoutError as error:
            raise LoadFailed("timed out waiting for model runner to start") from error
        except frames.FrameError as error:
            raise LoadFailed(f"the model runner cannot be used: {error}") from error

    async def load(self, load: Load, *, stall_seconds: float) -> Loaded:
        """Loads the model; `Progress` frames show that it moves.

        Raises LoadFailed or WorkerDied. `stall_seconds` without any sign (<= 0: no limit) ends the
        process.
        """
        async with self.start(load) as stream:
            while True:
                answer = await self._next_within(stream, stall_seconds)
                if isinstance(answer, Loaded):
                    self._is_loaded = True
                    self._liveness.note_answer()
                    return answer

    async def _next_within(self, stream: AnswerStream, seconds: float) -> object:
        try:
            async with asyncio.timeout(seconds if seconds > 0 else None):
                return await anext(stream)
        except TimeoutError as error:
            text = f"timed out waiting for model runner to start: no progress for {seconds:g} s"
            self._kill(text)
            raise LoadFailed(text) from error

    # ---- requests ----

    def start(self, request: Question, on_end: Callable[[], None] | None = None) -> AnswerStream:
        """Sends `request` and returns its answer's stream. Never blocks.

        `on_end` is called once, when the worker owes nothing more. Raises WorkerDied when the
        process is gone and Invalid when the request is larger than a frame may be.
        """
        if not self._is_open:
            raise WorkerDied(DIED)
        request_id = request.request_id
        if request_id in self._streams or request_id == _WATCH_ID:
            raise Internal(f"request id {request_id} is in use")
        try:
            data = frames.encode(request)
        except frames.FrameError as error:
            raise Invalid(f"the request is too large: {error}") from error

        def ended(tell_worker: bool) -> None:
            self._forget(request_id, tell_worker=tell_worker)
            if on_end is not None:
                on_end()

        stream = AnswerStream(
            request_id,
            ended,
            unread_bytes=self._limits.unread_bytes,
            unread_seconds=self._limits.unread_seconds,
        )
        if not self._streams:
            self._liveness.note_answer()
        self._streams[request_id] = stream
        self._has_requests.set()
        self._writer.write(data)
        return stream

    async def ask(self, request: Question, kind: type[SingleT]) -> SingleT:
        """The one answer to a request that has just one. Raises DaemonError."""
        async with self.start(request) as stream:
            async for answer in stream:
                if isinstance(answer, kind):
                    return answer
        raise Internal(f"the model runner did not answer with {kind.__name__}")

    def _forget(self, request_id: RequestId, *, tell_worker: bool) -> None:
        self._streams.pop(request_id, None)
        if not self._streams:
            self._has_requests.clear()
        if tell_worker and self._is_open:
            self._writer.write(frames.encode(Cancel(request_id=request_id)))

    # ---- what comes back ----

    async def _receive(self) -> None:
        problem = ""
        try:
            while (message := await frames.read_from_worker(self._reader)) is not None:
                self._dispatch(message)
        except frames.FrameError as error:
            problem = str(error)
        await self._on_closed(problem)

    def _dispatch(self, message: frames.Hello | FromWorker) -> None:
        if isinstance(message, frames.Hello):
            raise frames.FrameError("a second greeting")
        if isinstance(message, Status) and message.request_id == _WATCH_ID:
            self._liveness.note_status(message)
            return
        self._liveness.note_answer()
        # An unknown id is the rest of a request that was taken back.
        if (stream := self._streams.get(message.request_id)) is not None:
            stream.push(message)

    async def _on_closed(self, problem: str) -> None:
        self._is_open = False
        detail = problem or await self._exit_text()
        if self._stopping is None:
            self._has_died = True
            _log.error("%s: ended: %s", self.name, detail)
            self._fail_all(WorkerDied(f"{DIED}: {detail}"))
        else:
            self._fail_all(Busy("the model is being unloaded"))
        await self.stop()

    def _fail_all(self, error: DaemonError) -> None:
        for stream in list(self._streams.values()):
            stream.fail(error)

    async def _exit_text(self) -> str:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_STATUS_SECONDS):
                await self._process.wait()
        code = self._process.returncode
        if code is None:
            return "it closed its connection"
        return f"exit status {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"

    async def _copy_log(self) -> None:
        """The process's own output, line by line, with the worker's name."""
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:  # longer than the reader's limit: dropped, as it cannot be a message
                continue
            if not line:
                return
            _log.info("%s: %s", self.name, line.decode("utf-8", "replace").rstrip())

    # ---- the watch ----

    async def _watch(self) -> None:
        """Ends a wedged process, and requests whose reader has gone to sleep."""
        while self._is_open:
            await self._has_requests.wait()
            await self._pause()
            for stream in list(self._streams.values()):
                stream.check_overdue()
            if self._is_open and self._is_loaded and self._streams:
                self._check_stuck()

    async def _pause(self) -> None:
        """Until the next probe; time in which this loop did not listen is not held against anybody."""
        pause = min(self._limits.probe_seconds, self._limits.unread_seconds / 2)
        clock = asyncio.get_running_loop().time
        due = clock() + pause
        await asyncio.sleep(pause)
        if (late := clock() - due) > pause:
            self._liveness.forgive(late)

    def _check_stuck(self) -> None:
        if reason := self._liveness.check():
            self._kill(reason)
        else:
            self._writer.write(frames.encode(Probe(request_id=_WATCH_ID)))

    def _kill(self, reason: str) -> None:
        """Its requests end now, whether or not it lets itself be killed."""
        self._killed_because = reason
        self._is_open = False
        self._has_died = True
        _log.error("%s: killed: %s", self.name, reason)
        self._signal(signal.SIGKILL)
        self._fail_all(WorkerDied(f"{DIED}: {reason}"))
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._end())

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    # ---- death ----

    async def stop(self) -> None:
        """Ends the process: end of file, then SIGTERM, then SIGKILL; returns as `wait_ended`."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._end())
        # A caller that is cancelled must not leave a process behind.
        await asyncio.shield(self._stopping)

    async def _end(self) -> None:
        self._is_open = False
        self._fail_all(Busy("the model is being unloaded"))
        self._writer.close()
        if not await self._has_exited_within(self._limits.close_seconds):
            self._signal(signal.SIGTERM)
            if not await self._has_exited_within(self._limits.terminate_seconds):
                _log.warning("%s: does not end, killed", self.name)
                self._signal(signal.SIGKILL)
                await self._await_reaping()
        await self._end_tasks()
        self._ended.set()

    async def _await_reaping(self) -> None:
        if not await self._has_exited_within(self._limits.lost_seconds):
            self._is_given_up = True
            _log.error("%s: process %d was killed and does not end", self.name, self.pid)

    async def _end_tasks(self) -> None:
        # Not `_receive`: it may be who waits for us, and returns by itself once we are done.
        if self._watching is not None:
            self._watching.cancel()
        _, pending = await asyncio.wait((self._logging,), timeout=_EXIT_STATUS_SECONDS)
        for task in pending:
            if not self._is_given_up:  # what lives on may still say why
                task.cancel()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def _has_exited_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._process.wait()
        except TimeoutError:
            return False
        return True
