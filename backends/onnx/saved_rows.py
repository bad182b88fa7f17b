"""Rows of finished requests, written to disk in pauses and read back where that pays.

A pause writes one block at a time, so that a request that comes meanwhile waits for no disk but for
the end of that block; a row that is used again before it was written is not written.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from backends.engine.prefix_files import (
    BLOCK_POSITIONS,
    LEAST_IDS,
    DamagedPrefix,
    Found,
    PrefixFiles,
    PrefixWriter,
)
from backends.engine.prefix_index import Prefix
from backends.onnx.rows import KeyValueRows, Row

logger = logging.getLogger(__name__)

UNNOTICED_SECONDS = 0.1


class SavedRows:
    """`seconds_per_id` is what prefilling one id takes, 0 while that is not known."""

    def __init__(
        self, rows: KeyValueRows, files: PrefixFiles, seconds_per_id: Callable[[], float]
    ) -> None:
        self._rows = rows
        self._files = files
        self._seconds_per_id = seconds_per_id
        self._waiting: dict[Row, Prefix] = {}
        self._writing: tuple[Row, PrefixWriter] | None = None

    # ---- writing ----

    def note(self, row: Row, prefix: Prefix) -> None:
        """The idle `row` holds all of `prefix`: a later pause may write it."""
        if row.length >= LEAST_IDS and row.length == len(prefix.ids):
            self._waiting[row] = prefix

    def forget(self, row: Row) -> None:
        """What the row holds is about to change, or gone."""
        self._waiting.pop(row, None)
        if self._writing is not None and self._writing[0] is row:
            self._writing[1].abandon()
            self._writing = None

    def rest(self) -> bool:
        """Writes a block. False: there is nothing to write."""
        try:
            if self._writing is None:
                self._begin()
            if self._writing is None:
                return False
            self._write(*self._writing)
        except OSError as error:
            logger.warning("the prefix cache cannot be written: %s", error)
            self.close()
            return False
        return True

    def _begin(self) -> None:
        while self._waiting and self._writing is None and self._seconds_per_id() > 0:
            row, prefix = self._waiting.popitem()
            if self._files.has(prefix):
                continue
            seconds = self._seconds_per_id() * len(prefix.ids)
            writer = self._files.begin(prefix, row.exact_length, seconds)
            self._writing = (row, writer) if writer else None

    def _write(self, row: Row, writer: PrefixWriter) -> None:
        begin = writer.written
        writer.add(self._rows.read_block(row, begin, min(begin + BLOCK_POSITIONS, row.length)))
        if writer.written >= row.length:
            self._writing = None
            writer.finish()
            self._files.add(writer)

    def close(self) -> None:
        if self._writing is not None:
            self._writing[1].abandon()
        self._writing = None
        self._waiting.clear()

    # ---- reading ----

    def find(self, prefix: Prefix, *, most: int, held: int, exact: bool) -> Found | None:
        """What is worth a fresh row. While others decode, only what they will not notice."""
        seconds = math.inf if self._rows.is_quiet else UNNOTICED_SECONDS
        return self._files.best(prefix, most=most, held=held, exact=exact, most_seconds=seconds)

    def fill(self, row: Row, found: Found) -> bool:
        """Whether the fresh `row` holds all of it now; False: the file was damaged."""
        length = 0
        try:
            for block in self._files.read(found):
                positions = min(BLOCK_POSITIONS, found.shared - length)
                self._rows.write_block(row, length, block, positions)
                length += positions
        except DamagedPrefix as error:
            logger.warning("%s", error)
            return False
        row.length = row.peak = length
        row.exact_length = found.exact
        return True
