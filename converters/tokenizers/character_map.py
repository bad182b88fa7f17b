"""The table by which SentencePiece normalises a text (`precompiled_charsmap`), read and checked.

Layout: u32 size of the index; the index, a double-array trie of u32 entries; replacements, each
ended by a NUL. An entry holds its label in bits 0-7, bit 8 where a key ends, and in bits 10-30 (bit
9: times 256) what to XOR its place with to reach its children; with bit 31 set, bits 0-30 are the
place of a replacement (S. Yata, darts-clone). The engine's tokenizer follows it without bounds.
"""

from __future__ import annotations

import base64
import binascii

import numpy as np

from converters.errors import MalformedFile
from converters.gguf import Value

_KEY = "tokenizer.ggml.precompiled_charsmap"
_MAX_BYTES = 16 << 20
_HEAD_BYTES = 4
_IS_REPLACEMENT = np.uint32(1 << 31)


def read_character_map(metadata: dict[str, Value]) -> bytes:
    """The checked table, empty where the file has none. Raises MalformedFile.

    Bytes as an array of 8-bit numbers, or as base64 in one or more strings (files of Ollama).
    """
    value = metadata.get(_KEY)
    if value is None:
        return b""
    table = _table_bytes(value)
    check_table(table)
    return table


def check_table(table: bytes) -> None:
    """Raises MalformedFile for one that leads out of itself; an empty one is none."""
    if not table:
        return
    if len(table) > _MAX_BYTES:
        raise MalformedFile(f"{_KEY} has {len(table)} bytes, over {_MAX_BYTES}")
    index, replacements = _parts(table)
    _check(index, replacements)


def composes(table: bytes) -> bool:
    """Whether a letter and the accent after it become one character."""
    return bool(table) and _has_key(_parts(table)[0], "e\u0301".encode())


def _table_bytes(value: Value) -> bytes:
    if isinstance(value, np.ndarray) and value.dtype in (np.int8, np.uint8):
        return value.tobytes()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise MalformedFile(f"{_KEY} is neither bytes nor base64")
    try:
        return base64.b64decode("".join(texts), validate=True)
    except (binascii.Error, ValueError):
        raise MalformedFile(f"{_KEY} is not base64") from None


def _parts(table: bytes) -> tuple[np.ndarray, bytes]:
    size = int.from_bytes(table[:_HEAD_BYTES], "little")
    end = _HEAD_BYTES + size
    if len(table) < _HEAD_BYTES or size % 4 or not 0 < size < len(table) - _HEAD_BYTES:
        raise MalformedFile(f"{_KEY}: its index does not fit into its {len(table)} bytes")
    return np.frombuffer(table[_HEAD_BYTES:end], "<u4"), table[end:]


def _check(index: np.ndarray, replacements: bytes) -> None:
    is_replacement = (index & _IS_REPLACEMENT) != 0
    children = (np.arange(len(index)) ^ _offsets(index))[~is_replacement]
    if ((children | 0xFF) >= len(index)).any():
        raise MalformedFile(f"{_KEY}: an entry points out of the index")
    places = index[is_replacement] & ~_IS_REPLACEMENT
    if replacements[-1] != 0 or (places >= len(replacements)).any():
        raise MalformedFile(f"{_KEY}: a replacement is outside of the table")
    if not np.isin(places, _starts(replacements)).all():
        raise MalformedFile(f"{_KEY}: a replacement begins inside of a character")


def _starts(replacements: bytes) -> np.ndarray:
    """Places that are not inside of a UTF-8 sequence. Raises MalformedFile on other bytes."""
    try:
        replacements.decode()
    except UnicodeDecodeError:
        raise MalformedFile(f"{_KEY}: its replacements are not UTF-8") from None
    return np.flatnonzero((np.frombuffer(replacements, np.uint8) & 0xC0) != 0x80)


def _offsets(index: np.ndarray) -> np.ndarray:
    return ((index >> 10) << ((index & (1 << 9)) >> 6)).astype(np.int64)


def _has_key(index: np.ndarray, key: bytes) -> bool:
    offsets = _offsets(index)
    place = int(offsets[0])
    entry = 0
    for label in key:
        place ^= label
        entry = int(index[place])
        if entry & 0x800000FF != label:
            return False
        place ^= int(offsets[place])
    return bool(entry >> 8 & 1)
