"""A query and a document → the ids of one text that a rank head scores. Pure.

The forms are those that the models were trained with, as llama.cpp makes them: `[CLS] query [SEP]
document [SEP]` for BERT's vocabularies, `<s> query </s></s> document </s>` for RoBERTa's.
"""

from __future__ import annotations

import numpy as np

from backends.text.tokenizer import Tokenizer
from backends.types import EngineError, Rank

MAX_DOCUMENTS = 10_000
_DOUBLE_SEPARATOR_KINDS = ("t5",)


def pair_ids(
    tokenizer: Tokenizer, kind: str, rank: Rank, limit: int
) -> tuple[tuple[tuple[int, ...], ...], int]:
    """(ids of each pair, at most `limit`, and how many ids of documents were left out for that).

    `kind` is the artifact's `tokenizer_kind`. Raises EngineError: "too_long" where the query leaves no
    room, or a document does not fit and may not be cut; "unsupported" without special ids.
    """
    before, after = tokenizer.passage_frame()
    if not before or not after:
        message = "this model ranks texts in a form of its own, which is not supported yet"
        raise EngineError("unsupported", message)
    if len(rank.documents) > MAX_DOCUMENTS:
        raise EngineError("invalid", f"more than {MAX_DOCUMENTS} documents")
    between = after * 2 if kind in _DOUBLE_SEPARATOR_KINDS else after
    opening = (*before, *_plain(tokenizer, rank.query), *between)
    room = limit - len(opening) - len(after)
    if room <= 0:
        raise EngineError("too_long", "the query leaves no room for a document in the context")
    pairs: list[tuple[int, ...]] = []
    dropped = 0
    for place, document in enumerate(rank.documents):
        ids = _plain(tokenizer, document)
        if len(ids) > room and not rank.truncate:
            message = f"document {place} and the query exceed the context length of {limit}"
            raise EngineError("too_long", message)
        dropped += max(0, len(ids) - room)
        pairs.append((*opening, *ids[:room], *after))
    return tuple(pairs), dropped


def _plain(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Without what frames a text that stands alone."""
    before, after = tokenizer.passage_frame()
    ids = tuple(tokenizer.encode(text))
    ids = ids[len(before) :] if before and ids[: len(before)] == before else ids
    return ids[: -len(after)] if after and ids[-len(after) :] == after else ids


def score_of(vector: bytes) -> float:
    """The relevance: the first label's score as the head gives it, not squashed."""
    score = float(np.frombuffer(vector, dtype="<f4")[0])
    if not np.isfinite(score):
        raise EngineError("invalid", "the model gave a score that is no number")
    return score
