"""WordPiece ("bert" in GGUF): the longest piece that fits, again and again, until the word is used up.

GGUF writes a piece that begins a word with U+2581 in front and a continuation bare; `tokenizer.json`
writes the first bare and the second with `##`. Texts are cleaned and cut as the models were trained
(Hugging Face's BertNormalizer). llama.cpp's differs in what it leaves out: of a Hangul syllable it
keeps the first letter, of scripts with spacing marks no mark, it knows no longest word, takes
U+000B, U+000C and U+0085 for spaces, and its punctuation is that of a newer Unicode.
"""

from __future__ import annotations

from converters.errors import MalformedFile
from converters.tokenizers.tokenizer_json import Json, encode_tokenizer
from converters.tokenizers.vocabulary import TokenType, Vocabulary

_WORD_MARK = "\u2581"
_CONTINUATION = "##"
# As all published models: a longer word is unknown. It bounds the search, which is quadratic in it.
LONGEST_WORD = 100


def word_piece_json(
    vocabulary: Vocabulary, *, unknown_id: int, lowers: bool, strips_accents: bool
) -> bytes:
    """The file's bytes. Raises MalformedFile without an unknown token or where two pieces are one."""
    if unknown_id < 0:
        raise MalformedFile("the vocabulary has no token for unknown words")
    pieces = _pieces(vocabulary)
    model: Json = {
        "type": "WordPiece",
        "unk_token": pieces[unknown_id],
        "continuing_subword_prefix": _CONTINUATION,
        "max_input_chars_per_word": LONGEST_WORD,
        "vocab": {piece: index for index, piece in enumerate(pieces)},
    }
    return encode_tokenizer(
        vocabulary,
        model,
        {"type": "WordPiece", "prefix": _CONTINUATION, "cleanup": False},
        normalizer=_normalizer(lowers=lowers, strips_accents=strips_accents),
        pre_tokenizer={"type": "BertPreTokenizer"},
    )


def _pieces(vocabulary: Vocabulary) -> list[str]:
    pieces = [
        _piece(text, kind) for text, kind in zip(vocabulary.texts, vocabulary.types, strict=True)
    ]
    ids = {piece: index for index, piece in enumerate(pieces)}
    if len(ids) != len(pieces):
        twice = next(piece for index, piece in enumerate(pieces) if ids[piece] != index)
        raise MalformedFile(f"the piece {twice!r} appears twice in the vocabulary")
    return pieces


def _piece(text: str, kind: int) -> str:
    """U+2581 alone is that character inside a word, not the empty beginning of one."""
    if kind in (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN):
        return text
    if text.startswith(_WORD_MARK) and text != _WORD_MARK:
        return text[len(_WORD_MARK) :]
    return _CONTINUATION + text


def _normalizer(*, lowers: bool, strips_accents: bool) -> Json:
    return {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": strips_accents,
        "lowercase": lowers,
    }
