"""`python -m tests.backends.mlx.lead_process FOLDER RANKS SPLIT BATCHES`: an engine's answers as JSON.

A process of its own, because MLX joins a group once in a process's life.
"""

from __future__ import annotations

import json
import pathlib
import sys

from backends.types import GenerateRequest, Sampling
from tests.backends.mlx.engine_rig import answers, greedy, load_tiny, prompt_of


def requests() -> list[GenerateRequest]:
    """Short and long ones, one that is sampled; the last begins as the first does."""
    drawn = GenerateRequest(
        request_id="drawn", prompt_ids=prompt_of(50, 30), max_tokens=10,
        sampling=Sampling(temperature=0.9, seed=11),
    )  # fmt: skip
    return [greedy("short", prompt_of(20)), greedy("long", prompt_of(150, 25)), drawn]


def everything(folder: pathlib.Path, *, has_batches: bool, **fields: object) -> dict:
    engine = load_tiny(folder, has_batches=has_batches, **fields)
    found = answers(engine, *requests())
    found |= answers(engine, greedy("again", prompt_of(20)), greedy("more", prompt_of(60)))
    engine.close()
    return found


def main(folder: str, ranks: str, split: str, batches: str) -> None:
    found = everything(
        pathlib.Path(folder), has_batches=batches == "batches", ranks=int(ranks), split=split
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
