"""Rotary tables of rows whose positions do not count like their ids: those with images, by sections.

The attention nodes look angles up by place in the cache, so such a row brings tables of its own, in
which entry i holds the angles of what stands at place i. Rows with the same images in the same places
share them. They grow with the row, to twice what is needed.
"""

from __future__ import annotations

import weakref

import onnxruntime as ort

from backends.engine.positions import Layout
from backends.onnx.rope import rotary_inputs
from converters.artifact import Artifact

_FIRST_POSITIONS = 512


class ImageTables:
    def __init__(self, artifact: Artifact, layout: Layout, *, capacity: int, word: str) -> None:
        """`capacity`: positions that a row may have; `word`: the runtime's name for the device."""
        self._artifact = artifact
        self._layout = layout
        self._capacity = capacity
        self._word = word
        self._held = 0
        self._values: dict[str, ort.OrtValue] = {}

    def values(self, positions: int) -> dict[str, ort.OrtValue]:
        """Name of the graph's input → its table, of so many positions or more."""
        if positions > self._held:
            self._held = min(max(2 * positions, _FIRST_POSITIONS), self._capacity)
            tables = rotary_inputs(self._artifact, self._held, self._capacity, self._layout)
            self._values = {
                name: ort.OrtValue.ortvalue_from_numpy(table, self._word, 0)
                for name, table in tables.items()
            }
        return self._values


class ImageTableStore:
    """The tables that any request holds now."""

    def __init__(self, artifact: Artifact, *, capacity: int, word: str) -> None:
        self._artifact = artifact
        self._capacity = capacity
        self._word = word
        self._living: weakref.WeakValueDictionary[Layout, ImageTables] = (
            weakref.WeakValueDictionary()
        )
        self._has_sections = any(table.sections for table in artifact.rope.values())

    def tables(self, layout: Layout) -> ImageTables | None:
        """None where the common tables are right."""
        if not (layout and self._has_sections):
            return None
        found = self._living.get(layout)
        if found is None:
            found = ImageTables(self._artifact, layout, capacity=self._capacity, word=self._word)
            self._living[layout] = found
        return found
