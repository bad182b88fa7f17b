"""One of the other ranks, as a process: builds its part of the model, then does as it is told.

`python -m backends.mlx.rank --artifact FOLDER --config FILE --split KIND`, with MLX_RANK and
MLX_HOSTFILE set. `config` is the artifact's own, as the first rank has completed it. It leaves when it is told to, when it cannot follow, and when standard input ends: then the first rank's
process is gone.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

import mlx.core as mx
from mlx import nn

from backends.mlx import device, orders
from backends.mlx import mlx_lm_internals as internals
from backends.mlx.loading import build_lazily
from backends.mlx.mlx_lm_internals import Caches
from backends.mlx.proof import NUMBERS
from backends.mlx.splitting import split_model

EXIT_ORPHANED = 70
# Runs of more ids than this are parts of prompts, whose logits nobody reads.
MOST_WITH_LOGITS = 64


def run_eagerly(model: nn.Module, ids: mx.array, caches: Caches) -> mx.array:
    """On every rank alike: what is computed now is what the ranks exchange."""
    logits = model(ids, cache=caches)
    if ids.shape[1] <= MOST_WITH_LOGITS:
        internals.evaluate(caches, logits)
    else:
        internals.evaluate(caches)
    return logits


class Follower:
    """A part of the model and the caches that the first rank knows by number."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._caches: dict[int, Caches] = {}
        self.is_done = False

    def obey(self, order: orders.Order) -> None:
        match order:
            case orders.Numbers(name):
                self._model.set_dtype(NUMBERS[name])
                mx.eval(self._model.parameters())
            case orders.Run(caches, ids):
                run_eagerly(self._model, mx.array(ids), self._caches[caches])
            case orders.Leave():
                self.is_done = True
            case _:
                self._change(order)

    def _change(self, order: orders.Order) -> None:
        held = self._caches
        match order:
            case orders.Make(made):
                held[made] = internals.make_caches(self._model)
            case orders.Batch(made, rows):
                held[made] = internals.batch_of([held[row] for row in rows])
            case orders.Extend(batch, other):
                internals.extend_batch(held[batch], held[other])
            case orders.Filter(batch, places):
                internals.filter_batch(held[batch], places)
            case orders.Row(made, batch, place):
                held[made] = internals.row_of(held[batch], place)
            case orders.Trim(caches, positions):
                internals.trim(held[caches], positions)
            case orders.Prefix(made, caches, length, wanted):
                held[made] = internals.prefix_of(held[caches], length, wanted)
            case orders.Drop(caches):
                for number in caches:
                    held.pop(number, None)
            case _:
                raise ValueError(f"{order} changes no caches")


def main(arguments: Sequence[str]) -> NoReturn:
    parser = argparse.ArgumentParser(prog="backends.mlx.rank")
    parser.add_argument("--artifact", required=True, type=pathlib.Path)
    parser.add_argument("--config", required=True, type=pathlib.Path)
    parser.add_argument("--split", required=True, choices=("tensor", "pipeline"))
    given = parser.parse_args(arguments)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    device.prepare_device(device.device_name())
    # The file is there until the ranks have met.
    model = build_lazily(given.artifact, json.loads(given.config.read_bytes()))
    group = mx.distributed.init(backend="ring", strict=True)
    split_model(model, given.split, group)
    follower = Follower(model)
    while not follower.is_done:
        for order in orders.hear(group):
            follower.obey(order)
    sys.stderr.flush()
    os._exit(0)


def _leave_with_parent() -> None:
    """The pipe's other end closes with the process that holds it, however that ends."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(EXIT_ORPHANED)


if __name__ == "__main__":
    main(sys.argv[1:])
