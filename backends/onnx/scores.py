"""What one run says of the positions that were wanted.

The logits of a run on a device stay there until somebody asks for a line of them.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from backends.engine.filters import likeliest
from backends.onnx.device import Device


class Lines(Protocol):
    """Float32 [wanted, vocabulary], a line at a time."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, place: int, /) -> NDArray[np.float32]: ...


class DeviceLines:
    """Lines in a device's memory; each is read once, until `forget`."""

    def __init__(self, device: Device, lines: int, width: int) -> None:
        self._device = device
        self._buffer = device.allocate(lines * width * 4)
        self._read: dict[int, NDArray[np.float32]] = {}
        self.shape = (lines, width)
        self.address = self._buffer.address

    def forget(self) -> None:
        """Another run writes now."""
        self._read.clear()

    def __getitem__(self, place: int, /) -> NDArray[np.float32]:
        if place not in self._read:
            line = np.empty(self.shape[1], np.float32)
            self._device.read(self.address + place * line.nbytes, line)
            self._read[place] = line
        return self._read[place]


class Scores(NamedTuple):
    """Of each wanted position, likeliest first; views that the next run overwrites.

    `hidden` is what the head is given, and stays zero where the graph does not say it.
    """

    logits: Lines
    values: NDArray[np.float32]
    ids: NDArray[np.int64]
    lse: NDArray[np.float32]
    hidden: Lines

    @property
    def vocabulary(self) -> int:
        return self.logits.shape[-1]

    def first(self, count: int) -> Scores:
        return Scores(
            _first(self.logits, count),
            self.values[:count],
            self.ids[:count],
            self.lse[:count],
            _first(self.hidden, count),
        )


def _first(lines: Lines, count: int) -> Lines:
    return lines[:count] if isinstance(lines, np.ndarray) else lines


def raw_logprobs(
    scores: Scores, place: int, token_id: int, wanted: int
) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    """Natural-log probabilities before any filter: of the chosen id and of the likeliest ones."""
    if wanted < 0:
        return None, ()
    lse = float(scores.lse[place])
    ids, values = scores.ids[place], scores.values[place]
    chosen = np.flatnonzero(ids == token_id)
    value = values[chosen[0]] if chosen.size else scores.logits[place][token_id]
    if wanted > ids.size:
        ids, values = likeliest(scores.logits[place], wanted)
    pairs = zip(ids[:wanted], values[:wanted], strict=True)
    return float(value) - lse, tuple((int(i), float(v) - lse) for i, v in pairs)
