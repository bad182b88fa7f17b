"""Bytes of ids to text, never half a character. Owned by one conversation; O(1) per id.

Bytes that can still become a character are held back; bytes that cannot become U+FFFD at once, one
per maximal bad sequence, so that any cutting of the bytes gives the same text.
"""

from __future__ import annotations

import codecs

_new_decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    def __init__(self) -> None:
        self._decoder = _new_decoder("replace")

    def push(self, piece: bytes) -> str:
        """The characters that `piece` completes; may be empty."""
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """End of the stream: an unfinished character becomes U+FFFD."""
        return self._decoder.decode(b"", final=True)
