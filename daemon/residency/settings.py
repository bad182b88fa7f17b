"""What an owner can set about residency. Seconds are always floats here; `inf` is forever."""

from __future__ import annotations

import math

import msgspec

from daemon.config import Config

FOREVER = math.inf


class ResidencySettings(msgspec.Struct, frozen=True, kw_only=True):
    """`None` seconds: forever. `rows` is how many chats of one model run at once."""

    keep_alive_seconds: float | None = 300.0
    context_length: int = 4096
    rows: int = 4
    max_queue: int = 512
    max_loaded: int = 0
    load_timeout_seconds: float | None = 300.0
    cache_folder: str = ""
    prefix_cache_bytes: int = 0
    mlx_ranks: int = 1
    mlx_split: str = "auto"

    @classmethod
    def of(cls, config: Config) -> ResidencySettings:
        return cls(
            keep_alive_seconds=config.keep_alive_seconds,
            context_length=config.context_length,
            rows=config.num_parallel,
            max_queue=config.max_queue,
            max_loaded=config.max_loaded,
            load_timeout_seconds=config.load_timeout_seconds,
            cache_folder=str(config.home / "cache"),
            prefix_cache_bytes=config.prefix_cache_bytes,
            mlx_ranks=config.mlx_ranks,
            mlx_split=config.mlx_split,
        )


def as_seconds(seconds: float | None) -> float:
    """A keep-alive: None and what is negative mean forever."""
    return FOREVER if seconds is None or seconds < 0 else seconds
