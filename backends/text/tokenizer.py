"""One model's tokenizer: text to ids, and the exact bytes of one id. Owned by the worker's main thread.

Runs `tokenizer.json`; what the artifact says about special ids decides what is added to a prompt,
never the post-processor in that file. Special ids are shown as their own text, as the field does:
thinking and tool-call markup is made of them.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterable

import tokenizers

from backends.types import EngineError
from converters.artifact import TOKENIZER_FILE, ArtifactError, SpecialTokens

# Normalisers may shorten a text (three code points to one at most for composed Hangul).
_SHRINK = 4
_SPACE_MARK = "\u2581"


def _byte_alphabet() -> dict[str, int]:
    """The byte-level BPE alphabet: printable Latin-1 stands for itself, the rest from U+0100 up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(value): value for value in printable}
    hidden = (value for value in range(256) if value not in set(printable))
    alphabet |= {chr(0x100 + index): value for index, value in enumerate(hidden)}
    return alphabet


_ALPHABET = _byte_alphabet()
_BYTE_TOKENS = {f"<0x{value:02X}>": bytes([value]) for value in range(256)}


def _byte_level_piece(token: str) -> bytes:
    """Characters outside the alphabet (a hand-made vocabulary) stand for themselves."""
    values = [_ALPHABET.get(character) for character in token]
    if None in values:
        return token.encode("utf-8", "replace")
    return bytes(value for value in values if value is not None)


def _sentence_piece(token: str) -> bytes:
    if (byte := _BYTE_TOKENS.get(token)) is not None:
        return byte
    return token.replace(_SPACE_MARK, " ").encode("utf-8", "replace")


def _word_piece(token: str) -> bytes:
    """Continuations lose their mark, other words get a space in front."""
    text = token[2:] if token.startswith("##") else " " + token
    return text.encode("utf-8", "replace")


_PIECE_FORMS = {
    "ByteLevel": _byte_level_piece,
    "ByteFallback": _sentence_piece,
    "Metaspace": _sentence_piece,
    "WordPiece": _word_piece,
}


def _decoder_kinds(decoder: object) -> list[str]:
    if not isinstance(decoder, dict):
        return []
    kinds = [str(decoder.get("type"))]
    for child in decoder.get("decoders") or []:
        kinds += _decoder_kinds(child)
    return kinds


def _piece_form(data: bytes):
    """How this file writes bytes into its vocabulary, told from its decoder."""
    kinds = _decoder_kinds(json.loads(data).get("decoder"))
    for kind in kinds:
        if kind in _PIECE_FORMS:
            return _PIECE_FORMS[kind]
    raise ArtifactError(f"{TOKENIZER_FILE}: no known decoder among {kinds or 'none'}")


class Tokenizer:
    def __init__(self, data: bytes, special: SpecialTokens) -> None:
        """`data` is the content of `tokenizer.json`. Raises ArtifactError."""
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
            self._form = _piece_form(data)
        except ArtifactError:
            raise
        except Exception as error:
            raise ArtifactError(f"{TOKENIZER_FILE}: {error}") from error
        self.special = special
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = {
            token_id: token.content.encode("utf-8", "replace")
            for token_id, token in added.items()
            if token.content not in _BYTE_TOKENS
        }
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        self._special_texts = {t.content: i for i, t in added.items() if t.special and t.content}
        self._pieces: dict[int, bytes] = {}
        self._longest = max(map(len, self._tokenizer.get_vocab()), default=1)

    @classmethod
    def load(cls, folder: pathlib.Path, special: SpecialTokens) -> Tokenizer:
        try:
            data = (folder / TOKENIZER_FILE).read_bytes()
        except OSError as error:
            raise ArtifactError(f"{TOKENIZER_FILE}: {error.strerror}") from error
        return cls(data, special)

    def fewest_ids(self, text: str) -> int:
        """A lower bound of how many ids `text` has, without tokenizing it."""
        return len(text) // (self._longest * _SHRINK)

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of `text` alone; special tokens written in it are recognised."""
        try:
            return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)
        except Exception as error:
            raise EngineError("invalid", f"the text cannot be tokenized: {error}") from error

    def encode_plain(self, text: str) -> tuple[int, ...]:
        """As `encode`, but special tokens written in it are text like any other."""
        self._tokenizer.encode_special_tokens = True
        try:
            return self.encode(text)
        finally:
            self._tokenizer.encode_special_tokens = False

    def split_at_special(self, text: str) -> list[str | int]:
        """Texts and the special ids between them, in order."""
        if not self._special_texts:
            return [text]
        longest_first = sorted(self._special_texts, key=len, reverse=True)
        parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
        return [self._special_texts.get(part, part) for part in parts if part]

    def encode_prompt(self, text: str, add_special: bool = True) -> tuple[int, ...]:
        """Ids of a prompt; the model's BOS in front if it wants one and the text has none."""
        ids = self.encode(text)
        special = self.special
        if not (add_special and special.add_bos and special.bos_id >= 0):
            return ids
        return ids if ids[:1] == (special.bos_id,) else (special.bos_id, *ids)

    def passage_frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids that this model wants before and after a text that is to be embedded."""
        special = self.special
        before = (special.bos_id,) if special.add_bos and special.bos_id >= 0 else ()
        after = (special.eos_id,) if special.add_eos and special.eos_id >= 0 else ()
        return before, after

    def piece(self, token_id: int, show_special: bool = True) -> bytes:
        """The id's own bytes, maybe part of a character. Unknown ids have none."""
        if not show_special and self.is_special(token_id):
            return b""
        known = self._pieces.get(token_id)
        if known is None:
            known = self._make_piece(token_id)
            if known:  # clients send ids too: what is no id must not fill the memory
                self._pieces[token_id] = known
        return known

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special_ids

    @property
    def special_ids(self) -> frozenset[int]:
        return self._special_ids

    def special_id(self, text: str) -> int | None:
        """The special id that is exactly `text`."""
        return self._special_texts.get(text)

    def cut_at_special(self, text: str) -> list[str]:
        """`text` in parts, each either one special token's text or free of them."""
        longest_first = sorted(self._special_texts, key=len, reverse=True)
        pattern = "|".join(map(re.escape, longest_first))
        parts = re.split(f"({pattern})", text) if pattern else [text]
        return [part for part in parts if part]

    def pieces(self, count: int) -> list[bytes]:
        """The bytes of ids 0 to `count` - 1; b"" for ids that the tokenizer does not know."""
        return [self.piece(token_id) for token_id in range(count)]

    def _make_piece(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id]
        is_number = 0 <= token_id < 1 << 32  # the library's own type
        token = self._tokenizer.id_to_token(token_id) if is_number else None
        return b"" if token is None else self._form(token)

    def decode(self, ids: Iterable[int], show_special: bool = True) -> str:
        """Text that `encode` turns into `ids` again.

        Models that put a space before every fragment of plain text get those spaces taken away.
        """
        pieces: list[bytes] = []
        is_fragment_start = self.special.add_space_prefix
        for token_id in ids:
            piece = self.piece(token_id, show_special)
            pieces.append(piece.removeprefix(b" ") if is_fragment_start else piece)
            is_fragment_start = self.special.add_space_prefix and token_id in self._added
        return b"".join(pieces).decode("utf-8", "replace")

    def newline_ids(self) -> frozenset[int]:
        """Ids that are a line break and nothing else."""
        candidates = [*self.encode("\n"), self._tokenizer.token_to_id("<0x0A>")]
        return frozenset(
            token_id
            for token_id in candidates
            if token_id is not None and self.piece(token_id) == b"\n"
        )
