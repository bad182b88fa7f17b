"""Unigram ("t5" in GGUF): of all ways to cut a text into pieces, the one with the best sum of scores.

Equal to llama.cpp and SentencePiece but in two corners: marks that stand in an order other than
Unicode's canonical one are put into it, and a control token's text that only normalisation brings
about (wide brackets) can become that token.
"""

from __future__ import annotations

import base64

from converters.errors import MalformedFile
from converters.tokenizers.character_map import composes
from converters.tokenizers.tokenizer_json import Json, encode_tokenizer
from converters.tokenizers.vocabulary import TokenType, Vocabulary

_SPACE = "\u2581"
# No text has this in front after normalisation: spaces have become U+2581.
_UNREACHABLE = " "
# Between any two characters it keeps them apart; ASCII needs it nowhere but inside of \r\n. Put
# before the first character it would end the library in a panic.
_BREAK = "\u0001"
_BREAK_BEFORE = r"(?!\A)(?=[^\x{00}-\x{09}\x{0B}-\x{7F}])"


def unigram_json(
    vocabulary: Vocabulary,
    *,
    character_map: bytes,
    adds_space: bool,
    merges_spaces: bool,
    unknown_id: int,
    lstripping: frozenset[int] = frozenset(),
) -> bytes:
    """The file's bytes. Raises MalformedFile where no token is left for unknown text."""
    if unknown_id < 0:
        raise MalformedFile("the vocabulary has no token for unknown text")
    model: Json = {
        "type": "Unigram",
        "unk_id": unknown_id,
        "byte_fallback": False,
        "vocab": _scored_pieces(vocabulary),
    }
    steps = _normalisation(character_map) + _spaces(adds=adds_space, merges=merges_spaces)
    return encode_tokenizer(
        vocabulary,
        model,
        {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "always", "split": False},
        normalizer={"type": "Sequence", "normalizers": steps},
        lstripping=lstripping,
    )


def _scored_pieces(vocabulary: Vocabulary) -> list[tuple[str, float]]:
    """An unknown character costs 10 more than the worst ordinary piece: no other may be worse.

    Those that are (padding of the vocabulary), and byte tokens, which no text is cut into, are
    put where no text reaches them. User-defined tokens cost nothing.
    """
    ordinary = [
        score
        for score, kind in zip(vocabulary.scores, vocabulary.types, strict=True)
        if kind == TokenType.NORMAL
    ]
    worst = min(ordinary, default=0.0)
    return [
        _scored_piece(text, score, kind, worst)
        for text, score, kind in zip(
            vocabulary.texts, vocabulary.scores, vocabulary.types, strict=True
        )
    ]


def _scored_piece(text: str, score: float, kind: int, worst: float) -> tuple[str, float]:
    if kind == TokenType.NORMAL or (kind == TokenType.UNUSED and score >= worst):
        return text, score
    if kind == TokenType.USER_DEFINED:
        return text, max(0.0, worst)
    if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
        return text, worst
    return _UNREACHABLE + text, worst


def _normalisation(character_map: bytes) -> list[Json]:
    """The library looks at clusters, not at characters, and of a cluster drops what follows a match.

    So the text is composed first, where the table would, and its clusters are taken apart.
    """
    if not character_map:
        return []
    composition: list[Json] = [{"type": "NFC"}] if composes(character_map) else []
    return [
        *composition,
        {"type": "Replace", "pattern": {"Regex": _BREAK_BEFORE}, "content": _BREAK},
        {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(character_map).decode()},
        {"type": "Replace", "pattern": {"String": _BREAK}, "content": ""},
    ]


def _spaces(*, adds: bool, merges: bool) -> list[Json]:
    """A space goes before every stretch of text that has more than spaces in it."""
    steps: list[Json] = []
    if merges:
        steps.append({"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " +"}, "content": " "})
        steps.append({"type": "Prepend", "prepend": " "})
    elif adds:
        steps.append({"type": "Prepend", "prepend": " "})
        steps.append({"type": "Replace", "pattern": {"Regex": r"\A (?= *\z)"}, "content": ""})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": _SPACE})
    return steps
