"""Documents in the order of what they have to say to a query, in the form that Jina and Cohere made usual.

Scores are between 0 and 1, or as the model's head gives them where `raw_scores` asks for that. What did
not fit is cut, and `dropped_tokens` says how much.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from msgspec import UNSET

from backends.types import Rank, Ranked, Usage
from daemon.api.exchange import KeepAlive
from daemon.api.lookup import KnownModel
from daemon.api.services import Services
from daemon.errors import Invalid

# Documents of one question to a worker, so that others get their turn between.
DOCUMENTS_PER_QUESTION = 256
MOST_DOCUMENTS = 10_000


class RankRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`documents` are texts, or objects with a `text`; `top_n` 0: all of them."""

    model: str = ""
    query: str = ""
    documents: list[Any] = []
    top_n: int = 0
    return_documents: bool = False
    raw_scores: bool = False
    truncate: bool = True


class RankedText(msgspec.Struct, frozen=True, kw_only=True):
    text: str


class RankedDocument(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    index: int
    relevance_score: float
    document: RankedText | None = None


class RankUsage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    total_tokens: int
    dropped_tokens: int


class RankAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """`results` are sorted, the best first; `index` is the document's place in the request."""

    model: str
    object: str = "list"
    results: tuple[RankedDocument, ...]
    usage: RankUsage


def read_documents(data: RankRequest) -> tuple[str, ...]:
    """Raises Invalid."""
    if not data.query:
        raise Invalid("query is required")
    if not data.documents:
        raise Invalid("documents are required")
    if len(data.documents) > MOST_DOCUMENTS:
        raise Invalid(f"more than {MOST_DOCUMENTS} documents")
    if data.top_n < 0:
        raise Invalid("top_n must not be negative")
    return tuple(_text(value, place) for place, value in enumerate(data.documents))


def _text(value: Any, place: int) -> str:
    text = cast("dict[str, Any]", value).get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise Invalid(f"documents[{place}] is neither a text nor an object with a text")
    return text


def require_ranking(model: KnownModel) -> None:
    """Raises Invalid."""
    if not model.can("rerank"):
        raise Invalid(f'"{model.asked}" does not support rerank')


@dataclass(frozen=True)
class Ranking:
    """One request that passed its checks."""

    services: Services
    client: str
    model: KnownModel
    data: RankRequest
    documents: tuple[str, ...]
    keep_alive: KeepAlive = UNSET

    async def answers(self) -> AsyncGenerator[RankAnswer, None]:
        """Raises DaemonError."""
        parts = list[Ranked]()
        async with await self.services.residency.acquire(
            self.model.stored,
            client=self.client,
            keep_alive_seconds=self.keep_alive,
            wants_row=False,
        ) as lease:
            for begin in range(0, len(self.documents), DOCUMENTS_PER_QUESTION):
                question = Rank(
                    request_id=uuid.uuid4().hex,
                    query=self.data.query,
                    documents=self.documents[begin : begin + DOCUMENTS_PER_QUESTION],
                    truncate=self.data.truncate,
                )
                parts.append(await lease.rank(question))
                self._count(parts[-1])
        yield self._answer(parts)

    def _count(self, part: Ranked) -> None:
        usage = Usage(prompt_tokens=part.prompt_tokens, dropped_tokens=part.dropped_tokens)
        self.services.metrics.count_ids(self.model.stored.name.short, usage)

    def _answer(self, parts: list[Ranked]) -> RankAnswer:
        scores = [score for part in parts for score in part.scores]
        if not self.data.raw_scores and not any(part.are_probabilities for part in parts):
            scores = [logistic(score) for score in scores]
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
        tokens = sum(part.prompt_tokens for part in parts)
        return RankAnswer(
            model=self.data.model,
            results=tuple(self._result(i, scores[i]) for i in order[: self.data.top_n or None]),
            usage=RankUsage(
                prompt_tokens=tokens,
                total_tokens=tokens,
                dropped_tokens=sum(part.dropped_tokens for part in parts),
            ),
        )

    def _result(self, index: int, score: float) -> RankedDocument:
        shown = RankedText(text=self.documents[index]) if self.data.return_documents else None
        return RankedDocument(
            index=index,
            relevance_score=score,
            document=shown,
        )


def logistic(score: float) -> float:
    """1/(1 + e^-score), also far from 0."""
    if score >= 0:
        return 1 / (1 + math.exp(-score))
    grown = math.exp(score)
    return grown / (1 + grown)
