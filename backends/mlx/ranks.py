"""One model over several processes: the first rank's side, which the engine sees as a model.

Starts the other ranks, tells them every change to caches and every run, and watches them. MLX's ring
may wait for ever for a rank that says nothing, and nothing can end that wait from within: so when one
dies, or nothing moves for too long, all are killed and `on_lost` ends this process with a reason.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
from mlx import nn

from backends.mlx import mlx_lm_internals as internals
from backends.mlx import orders
from backends.mlx.mlx_lm_internals import Caches, Config, Held
from backends.mlx.rank import run_eagerly
from backends.mlx.splitting import check_hosts, split_model
from backends.types import EngineError
from backends.worker.lifeline import leave_because

# The first run on a large model reads its weights; nothing else takes nearly as long.
STALL_SECONDS = 120.0
_LOOK_SECONDS = 0.25
_LOOKS = 8
_log = logging.getLogger(__name__)


class Ranks:
    """The processes of the other ranks, and the watch over them. Owned by the engine's thread."""

    def __init__(
        self,
        folder: pathlib.Path,
        config: Config,
        split: str,
        count: int,
        *,
        on_lost: Callable[[str], None] = leave_because,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self._on_lost = on_lost
        self._stall_seconds = stall_seconds
        self._busy_since = 0.0
        self._is_over = threading.Event()
        addresses = free_addresses(count)
        check_hosts(addresses)
        with tempfile.TemporaryDirectory() as place:
            hosts = pathlib.Path(place) / "hosts.json"
            hosts.write_text(json.dumps([[address] for address in addresses]))
            settings = pathlib.Path(place) / "config.json"
            settings.write_text(json.dumps(config))
            arguments = ["--artifact", str(folder), "--config", str(settings), "--split", split]
            self.processes = [_start(arguments, rank, hosts) for rank in range(1, count)]
            threading.Thread(target=self._watch, name="ranks", daemon=True).start()
            os.environ |= _environment(0, hosts)
            with self.moving():
                self.group = mx.distributed.init(backend="ring", strict=True)

    @contextlib.contextmanager
    def moving(self) -> Iterator[None]:
        """While other ranks are waited for."""
        self._busy_since = time.monotonic()
        try:
            yield
        finally:
            self._busy_since = 0.0

    def _watch(self) -> None:
        while not self._is_over.wait(_LOOK_SECONDS):
            reason = self._loss()
            if reason:
                self._is_over.set()
                _log.error("%s", reason)
                self._kill()
                self._on_lost(reason)
                return

    def _loss(self) -> str:
        for rank, process in enumerate(self.processes, 1):
            code = process.poll()
            if code is not None:
                return f"rank {rank} of {len(self.processes) + 1} of this model ended ({code})"
        since = self._busy_since
        if since and time.monotonic() - since > self._stall_seconds:
            return f"the ranks of this model made no progress for {self._stall_seconds:g} s"
        return ""

    def explain(self, error: Exception) -> str:
        """Why an exchange failed; the rank that is to blame is seen to be gone soon after."""
        for _ in range(_LOOKS):
            if reason := self._loss():
                return reason
            time.sleep(_LOOK_SECONDS)
        return f"the ranks of this model lost each other: {error}"

    def _kill(self) -> None:
        for process in self.processes:
            process.kill()

    def close(self) -> None:
        """After the order to leave."""
        self._is_over.set()
        for process in self.processes:
            if process.stdin:
                process.stdin.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class LeadModel:
    """The model to the engine. Every call and change of caches is told before it is done here."""

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self._model = model
        self._ranks = ranks
        self._untold: list[orders.Order] = []
        self._dropped: list[int] = []
        self._numbers: weakref.WeakKeyDictionary[Held, int] = weakref.WeakKeyDictionary()
        self._next = 0
        internals.listen(self._note)

    def __call__(self, ids: mx.array, *, cache: Caches) -> mx.array:
        rows: Any = ids.tolist()
        self._untold.append(orders.Run(self._number(cache), rows))
        try:
            with self._ranks.moving():
                self._tell()
                return run_eagerly(self._model, ids, cache)
        except RuntimeError as error:
            raise EngineError("died", self._ranks.explain(error)) from error

    def make_cache(self) -> Any:
        return internals.submodule("models.cache").make_prompt_cache(self._model)

    def parameters(self) -> Any:
        return self._model.parameters()

    def set_dtype(self, numbers: mx.Dtype) -> None:
        self._untold.append(orders.Numbers(str(numbers).rpartition(".")[2]))
        self._model.set_dtype(numbers)

    def close(self) -> None:
        """The other ranks leave."""
        internals.listen(None)
        self._untold.append(orders.Leave())
        with self._ranks.moving(), contextlib.suppress(RuntimeError):  # they may be gone already
            self._tell()
        self._ranks.close()

    # ---- what the others are told ----

    def _tell(self) -> None:
        gone, self._dropped = self._dropped, []
        told, self._untold = self._untold, []
        if gone:
            told.insert(0, orders.Drop(gone))
        orders.tell(self._ranks.group, told)

    def _number(self, caches: Any) -> int:
        return self._numbers[caches]

    def _named(self, caches: Held) -> int:
        self._next += 1
        self._numbers[caches] = number = self._next
        weakref.finalize(caches, self._dropped.append, number)
        return number

    def _note(self, name: str, arguments: Sequence[Any], result: Any) -> None:
        """Called after each operation on caches, with what it made."""
        number = self._number
        match name, arguments:
            case "make_caches", _:
                order = orders.Make(self._named(result))
            case "batch_of", (rows,):
                listed = [number(row) for row in rows]
                order = orders.Batch(self._named(result), listed)
            case "extend_batch", (batch, other):
                order = orders.Extend(number(batch), number(other))
            case "filter_batch", (batch, places):
                order = orders.Filter(number(batch), list(places))
            case "row_of", (batch, place):
                order = orders.Row(self._named(result), number(batch), place)
            case "trim", (caches, positions):
                order = orders.Trim(number(caches), positions)
            case "prefix_of", (caches, held, wanted):
                order = orders.Prefix(self._named(result), number(caches), held, wanted)
            case _:
                raise ValueError(f"ranks do not know the operation {name}")
        self._untold.append(order)


def distribute(
    model: nn.Module,
    folder: pathlib.Path,
    config: Config,
    split: str,
    count: int,
    **watching: Any,
) -> LeadModel:
    """Starts the other ranks and keeps this one's part of `model`. Raises EngineError."""
    ranks = Ranks(folder, config, split, count, **watching)
    split_model(model, split, ranks.group)
    return LeadModel(model, ranks)


def free_addresses(count: int) -> list[str]:
    """Ports of loopback that nobody listens on now."""
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in taken]
    finally:
        for one in taken:
            one.close()


def _environment(rank: int, hosts: pathlib.Path) -> dict[str, str]:
    return {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)}


def _start(arguments: list[str], rank: int, hosts: pathlib.Path) -> subprocess.Popen[bytes]:
    """Its standard input stays open as long as this process lives."""
    command = [sys.executable, "-P", "-m", "backends.mlx.rank", *arguments]
    paths = os.pathsep.join(filter(None, sys.path))
    environment = os.environ | _environment(rank, hosts) | {"PYTHONPATH": paths}
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
