"""Rows of finished requests on disk: what a row is made of, as blocks of bytes and back."""

from __future__ import annotations

import logging
from collections.abc import Callable

from backends.engine.prefix_files import DamagedPrefix, Found, PrefixFiles
from backends.engine.prefix_format import BLOCK_POSITIONS, PrefixForm
from backends.engine.saved_prefixes import SavedPrefixes
from backends.onnx.rows import KeyValueRows, Row

logger = logging.getLogger(__name__)


def form_of_rows(rows: KeyValueRows) -> PrefixForm:
    """The same for every row."""
    return PrefixForm(position_bytes=rows.position_bytes)


class _RowBytes:
    """`Holder` of rows."""

    def __init__(self, rows: KeyValueRows) -> None:
        self._rows = rows
        self._form = form_of_rows(rows)

    def form_of(self, key: Row) -> PrefixForm:
        return self._form

    def read_block(self, key: Row, begin: int, end: int) -> bytes:
        return self._rows.read_block(key, begin, end)

    def read_whole(self, key: Row, begin: int, end: int) -> bytes:
        raise NotImplementedError("these rows have nothing that cannot be cut")


class SavedRows(SavedPrefixes[Row]):
    def __init__(
        self, rows: KeyValueRows, files: PrefixFiles, seconds_per_id: Callable[[], float]
    ) -> None:
        super().__init__(_RowBytes(rows), files, seconds_per_id)
        self._rows = rows

    def fill(self, row: Row, found: Found) -> bool:
        """Whether the fresh `row` holds all of it now; False: the file was damaged."""
        length = 0
        try:
            for block in self.read(found):
                positions = min(BLOCK_POSITIONS, found.shared - length)
                self._rows.write_block(row, length, block, positions)
                length += positions
        except DamagedPrefix as error:
            logger.warning("%s", error)
            return False
        row.length = row.peak = length
        row.exact_length = found.exact
        return True
