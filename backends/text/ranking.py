"""A query and a document → the ids of one text that a rank head scores. Pure.

The forms are those that the models were trained with, as llama.cpp makes them: `[CLS] query [SEP]
document [SEP]` for BERT's vocabularies, `<s> query </s></s> document </s>` for RoBERTa's, and the file's
own template where it has one (Qwen 3). There what stands in query and document is never a special token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from backends.text.tokenizer import Tokenizer
from backends.types import EngineError, Rank
from converters.artifact import Artifact

MAX_DOCUMENTS = 10_000
MAX_TEMPLATE_CHARACTERS = 1 << 16
_DOUBLE_SEPARATOR_KINDS = ("t5",)
_QUERY, _DOCUMENT = "{query}", "{document}"

Ids = tuple[int, ...]


class _Form(NamedTuple):
    """A pair is `head`, the ids of `start` and the document as one text, and `tail`."""

    head: Ids
    start: str
    tail: Ids
    encode: Callable[[str], Ids]


class PairForms:
    """Of one model that ranks. `are_probabilities`: what its head gives."""

    def __init__(self, tokenizer: Tokenizer, artifact: Artifact) -> None:
        self._tokenizer = tokenizer
        self._template = artifact.rank_template
        self._separators = 2 if artifact.tokenizer_kind in _DOUBLE_SEPARATOR_KINDS else 1
        self.are_probabilities = artifact.has_probabilities

    def pair_ids(self, rank: Rank, limit: int) -> tuple[tuple[Ids, ...], int]:
        """(ids of each pair, at most `limit`, and how many ids of documents were left out for that).

        Raises EngineError: "too_long" where the query leaves no room, or a document does not fit and may
        not be cut; "unsupported" for a model without a form.
        """
        if len(rank.documents) > MAX_DOCUMENTS:
            raise EngineError("invalid", f"more than {MAX_DOCUMENTS} documents")
        form = self._templated(rank.query) if self._template else self._framed(rank.query)
        room = limit - len(form.head) - len(form.tail)
        if room <= len(form.encode(form.start)):
            raise EngineError("too_long", "the query leaves no room for a document in the context")
        pairs: list[Ids] = []
        dropped = 0
        for place, document in enumerate(rank.documents):
            ids = form.encode(form.start + document)
            if len(ids) > room and not rank.truncate:
                message = f"document {place} and the query exceed the context length of {limit}"
                raise EngineError("too_long", message)
            dropped += max(0, len(ids) - room)
            pairs.append((*form.head, *ids[:room], *form.tail))
        return tuple(pairs), dropped

    def _framed(self, query: str) -> _Form:
        before, after = self._tokenizer.passage_frame()
        if not before or not after:
            message = "this model ranks texts in a form of its own, which its file does not say"
            raise EngineError("unsupported", message)
        head = (*before, *self._plain(query), *after * self._separators)
        return _Form(head, "", after, self._plain)

    def _plain(self, text: str) -> Ids:
        """Without what frames a text that stands alone."""
        before, after = self._tokenizer.passage_frame()
        ids = self._tokenizer.encode(text)
        ids = ids[len(before) :] if before and ids[: len(before)] == before else ids
        return ids[: -len(after)] if after and ids[-len(after) :] == after else ids

    def _templated(self, query: str) -> _Form:
        """Words may merge across the ends of query and document, so all up to a special id is one text."""
        if len(self._template) > MAX_TEMPLATE_CHARACTERS:
            raise EngineError("unsupported", "this model's rerank template is too long")
        before, found, after = self._template.partition(_DOCUMENT)
        if not found or _DOCUMENT in after or _QUERY not in self._template:
            raise EngineError("unsupported", "this model's rerank template has no place for a pair")
        parts = self._tokenizer.split_at_special(before)
        start = parts.pop() if parts and isinstance(parts[-1], str) else ""
        head = self._ids(parts, query)
        tail = self._ids(self._tokenizer.split_at_special(after), query)
        return _Form(head, str(start).replace(_QUERY, query), tail, self._tokenizer.encode_plain)

    def _ids(self, parts: Iterable[str | int], query: str) -> Ids:
        encode = self._tokenizer.encode_plain
        return tuple(
            token_id
            for part in parts
            for token_id in (
                (part,) if isinstance(part, int) else encode(part.replace(_QUERY, query))
            )
        )


def score_of(vector: bytes) -> float:
    """The relevance: the first label's score as the head gives it, not squashed."""
    score = float(np.frombuffer(vector, dtype="<f4")[0])
    if not np.isfinite(score):
        raise EngineError("invalid", "the model gave a score that is no number")
    return score
