"""A `tokenizer.json` from a stranger, read whole and checked before anything is made of it.

The file is kept as it is; this looks at its vocabulary, its added tokens and the kind of its model.
Raises MalformedFile, Unsupported.
"""

from __future__ import annotations

from typing import Any

import msgspec

from converters.errors import MalformedFile, Unsupported
from converters.strict_json import parse_json
from converters.tokenizers.vocabulary import MAX_TOKEN_CHARACTERS, MAX_TOKENS

TOKENIZER = "tokenizer.json"
MAX_MERGES = 1 << 21
KINDS = ("BPE", "Unigram", "WordPiece")


class AddedToken(msgspec.Struct, frozen=True):
    id: int
    content: str
    special: bool = False
    normalized: bool = False


class TokenizerFile(msgspec.Struct, frozen=True, kw_only=True):
    """`pieces` id → text of the model's own vocabulary, `added` id → token; they may overlap.

    `scores` are a Unigram's, `merges` a BPE's; the other parts are as the file has them.
    """

    kind: str
    pieces: dict[int, str]
    added: dict[int, AddedToken]
    scores: dict[int, float] = {}
    merges: list[tuple[str, str]] = []
    unknown: str = ""
    ignores_merges: bool = False
    has_byte_fallback: bool = False
    normalizer: Any = None
    pre_tokenizer: Any = None
    post_processor: Any = None

    def id_of(self, text: str) -> int:
        """-1 where there is none. Added tokens come first, as they do in a text."""
        for index, token in self.added.items():
            if token.content == text:
                return index
        return next((index for index, piece in self.pieces.items() if piece == text), -1)


def read_tokenizer(text: str) -> TokenizerFile:
    found = parse_json(text, TOKENIZER)
    model = found.get("model") if isinstance(found, dict) else None
    if not isinstance(model, dict):
        raise MalformedFile(f"{TOKENIZER} holds no model")
    kind = _kind(model)
    try:
        added = msgspec.convert(found.get("added_tokens") or [], list[AddedToken])
        pieces, scores = _pieces(model, kind)
    except msgspec.ValidationError as error:
        raise MalformedFile(f"{TOKENIZER}: {error}") from error
    _check_sizes(pieces, added)
    return TokenizerFile(
        kind=kind,
        pieces=pieces,
        added={token.id: token for token in added},
        scores=scores,
        merges=_merges(model),
        unknown=_unknown(model, pieces),
        ignores_merges=bool(model.get("ignore_merges")),
        has_byte_fallback=bool(model.get("byte_fallback")),
        normalizer=found.get("normalizer"),
        pre_tokenizer=found.get("pre_tokenizer"),
        post_processor=found.get("post_processor"),
    )


def _kind(model: dict[str, Any]) -> str:
    """Old files leave the type out: then the parts tell."""
    kind = model.get("type")
    if kind is None:
        kind = "Unigram" if isinstance(model.get("vocab"), list) else "BPE"
        kind = (
            "WordPiece" if "continuing_subword_prefix" in model and "merges" not in model else kind
        )
    if kind not in KINDS:
        raise Unsupported(f"{TOKENIZER}: models of the type {str(kind)[:40]!r} are not supported")
    return str(kind)


def _pieces(model: dict[str, Any], kind: str) -> tuple[dict[int, str], dict[int, float]]:
    if kind == "Unigram":
        listed = msgspec.convert(model.get("vocab"), list[tuple[str, float]])
        pieces = {index: piece for index, (piece, _) in enumerate(listed)}
        return pieces, {index: score for index, (_, score) in enumerate(listed)}
    vocabulary = msgspec.convert(model.get("vocab"), dict[str, int])
    pieces = {index: piece for piece, index in vocabulary.items()}
    if len(pieces) != len(vocabulary):
        raise MalformedFile(f"{TOKENIZER}: two pieces have one id")
    return pieces, {}


def _check_sizes(pieces: dict[int, str], added: list[AddedToken]) -> None:
    ids = [*pieces, *(token.id for token in added)]
    if not ids:
        raise MalformedFile(f"{TOKENIZER} has no vocabulary")
    if min(ids) < 0 or max(ids) >= MAX_TOKENS:
        raise MalformedFile(f"{TOKENIZER}: ids from {min(ids)} to {max(ids)}, over {MAX_TOKENS}")
    longest = max(map(len, [*pieces.values(), *(token.content for token in added)]))
    if longest > MAX_TOKEN_CHARACTERS:
        raise MalformedFile(f"{TOKENIZER}: a token of {longest} characters")


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Older files write a pair as one text with a space in it."""
    merges = model.get("merges") or []
    if not isinstance(merges, list) or len(merges) > MAX_MERGES:
        raise MalformedFile(f"{TOKENIZER}: its merges are no list, or more than {MAX_MERGES}")
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(p, str) for p in pair)
        ):
            raise MalformedFile(f"{TOKENIZER}: a merge is not of two pieces: {str(merge)[:80]}")
        pairs.append((pair[0], pair[1]))
    return pairs


def _unknown(model: dict[str, Any], pieces: dict[int, str]) -> str:
    if isinstance(index := model.get("unk_id"), int):
        return pieces.get(index, "")
    unknown = model.get("unk_token")
    return unknown if isinstance(unknown, str) else ""
