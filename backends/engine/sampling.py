"""How the next id is chosen: the NumPy oracle that every backend is held to.

Order, as in the field: repeat, presence and frequency penalties over the last ids, top_k, tfs_z,
typical_p, top_p, min_p, temperature, draw. Mirostat replaces everything between penalties and draw
but the temperature. `temperature` <= 0 is greedy: the likeliest id after penalties, the lower id
among equals. Candidates are always ordered likeliest first, equals by id, and one random number is
taken per drawn id, so that equal logits and seed give equal ids whatever path they came by.

Two paths lead to the same id: `sample` sees all logits; `sample_top` sees the graph's top-k and
answers None unless `topk_is_sufficient`. A constraint takes ids away before everything but the
penalties, on both paths. Never changes the arrays it is given.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import msgspec
import numpy as np

from backends.engine.filters import (
    Bits,
    Candidates,
    Doubles,
    Floats,
    Ids,
    allowed_ids,
    filtered,
    is_allowed,
    kept_by_min_p,
    kept_by_top_p,
    likeliest,
    mirostat_k,
    softmax,
    surprise_of,
)
from backends.types import Constraint, EngineError, Sampling

# Cumulative probabilities nearer than this to top_p are settled by the full logits: far above the
# rounding of a float32 log-sum-exp, far below what a user could mean.
TOP_P_MARGIN = 1e-4


class Distribution(NamedTuple):
    """What an id is drawn from: `ids` int64 [n], `probabilities` float64 [n] that sum to 1."""

    ids: Ids
    probabilities: Doubles


class TopK(NamedTuple):
    """What the graph's top-k tells after penalties.

    The first `certain` of `candidates` are the true first of the whole vocabulary, and everything
    not listed is <= `floor`. `log_total` is the log-sum-exp of all logits after penalties, NaN
    where penalties made it unknown. `is_whole`: the list is the vocabulary.
    """

    candidates: Candidates
    certain: int
    floor: float
    log_total: float
    is_whole: bool = False


def check_sampling(sampling: Sampling) -> None:
    """Raises EngineError("invalid") for numbers that no formula here has a meaning for."""
    for field in msgspec.structs.fields(Sampling):
        value = getattr(sampling, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise EngineError("invalid", f"{field.name} must be a finite number")
    if sampling.repeat_penalty <= 0:
        raise EngineError("invalid", "repeat_penalty must be greater than 0")
    if sampling.mirostat not in (0, 1, 2):
        raise EngineError("invalid", "mirostat must be 0, 1 or 2")


def log_sum_exp(logits: Floats) -> float:
    top = float(logits.max())
    return top + math.log(float(np.exp(logits.astype(np.float64) - top).sum()))


def make_generator(seed: int | None) -> np.random.Generator:
    """A request's own generator; None and -1 draw a seed, others count modulo 2**64."""
    if seed is None or seed == -1:
        return np.random.Generator(np.random.PCG64())
    return np.random.Generator(np.random.PCG64(seed % (1 << 64)))


class Sampler:
    """The choices of one request: its generator, its recent ids, its Mirostat state."""

    def __init__(
        self,
        sampling: Sampling,
        *,
        newline_ids: frozenset[int] = frozenset(),
        history: Iterable[int] = (),
        constraint: Constraint | None = None,
    ) -> None:
        """`history` are the prompt's ids; `constraint` is told of what is accepted later."""
        check_sampling(sampling)
        self._sampling = sampling
        self._constraint: Constraint | None = None
        self._generator = make_generator(sampling.seed)
        self._penalties = Penalties(sampling, newline_ids)
        self._mu = 2.0 * sampling.mirostat_tau
        for token_id in history:
            self.accept(token_id)
        self._constraint = constraint

    def accept(self, token_id: int) -> None:
        """Takes an id of prompt or answer into the window of the penalties."""
        self._penalties.accept(token_id)
        if self._constraint is not None:
            self._constraint.accept(token_id)

    def _allowed(self) -> Bits | None:
        constraint = self._constraint
        return None if constraint is None else np.frombuffer(constraint.allowed(), np.uint8)

    def sample(self, logits: Floats) -> int:
        """An id from float32 [vocabulary]. Raises EngineError where no logit is a number."""
        return self._draw(self.distribution(logits))

    def sample_top(self, ids: Ids, values: Floats, lse: float, vocabulary: int) -> int | None:
        """An id from the graph's top-k, or None: then only `sample` gives the exact result.

        `ids` int64 [k] and `values` float32 [k] are the k largest raw logits, likeliest first,
        equals by id; `lse` is the log-sum-exp of all `vocabulary` raw logits.
        """
        distribution = self.distribution_top(ids, values, lse, vocabulary)
        return None if distribution is None else self._draw(distribution)

    def distribution(self, logits: Floats) -> Distribution:
        """What `sample` would draw from, with the request's state as it is now."""
        adjusted = self._penalties.on_all(logits)
        sampling = self._sampling
        if not math.isfinite(float(adjusted.max())):
            raise EngineError("internal", "the model produced logits that are not numbers")
        allowed = allowed_ids(self._allowed(), logits.size)
        if sampling.temperature <= 0:
            best = adjusted.argmax() if allowed is None else allowed[adjusted[allowed].argmax()]
            return Distribution(np.array([best]), np.ones(1))
        if sampling.mirostat:
            return self._mirostat(likeliest(adjusted, 0, allowed))
        return self._heated(filtered(likeliest(adjusted, sampling.top_k, allowed), sampling))

    def distribution_top(
        self, ids: Ids, values: Floats, lse: float, vocabulary: int
    ) -> Distribution | None:
        """The same distribution, id for id and bit for bit, from the top-k; None where it is not."""
        if not (math.isfinite(lse) and math.isfinite(float(values[0]))):
            raise EngineError("internal", "the model produced logits that are not numbers")
        top = self._penalties.on_top(ids, values, lse, vocabulary)
        allowed = self._allowed()
        if allowed is not None:
            top = only_allowed(top, allowed)
        sampling = self._sampling
        kept = plan_kept(sampling, top)
        if kept is None:
            return None
        candidates = Candidates(top.candidates.ids[:kept], top.candidates.logits[:kept])
        if sampling.temperature <= 0:
            return Distribution(candidates.ids, np.ones(1))
        if kept == sampling.top_k:
            candidates = filtered(candidates, sampling)
        return self._heated(candidates)

    def _heated(self, candidates: Candidates) -> Distribution:
        return Distribution(candidates.ids, softmax(candidates.logits, self._sampling.temperature))

    def _mirostat(self, candidates: Candidates) -> Distribution:
        """Basu et al., arXiv 2007.14966: version 1 by a fitted k, version 2 by a surprise limit."""
        ids, probabilities = self._heated(candidates)
        if self._sampling.mirostat == 1:
            scaled = candidates.logits.astype(np.float64) / self._sampling.temperature
            kept = mirostat_k(scaled, self._mu, ids.size)
        else:
            kept = max(1, int(np.searchsorted(surprise_of(probabilities), self._mu, side="right")))
        return Distribution(ids[:kept], probabilities[:kept] / probabilities[:kept].sum())

    def _draw(self, distribution: Distribution) -> int:
        index = draw(distribution.probabilities, self._generator)
        if self._sampling.mirostat:
            surprise = float(surprise_of(distribution.probabilities[index]))
            self._mu -= self._sampling.mirostat_eta * (surprise - self._sampling.mirostat_tau)
        return int(distribution.ids[index])


class Penalties:
    """Counts of the last ids, and what they do to logits. repeat_last_n < 0 counts all."""

    def __init__(self, sampling: Sampling, newline_ids: frozenset[int]) -> None:
        self._repeat = sampling.repeat_penalty
        self._presence = sampling.presence_penalty
        self._frequency = sampling.frequency_penalty
        self._exempt = frozenset() if sampling.penalize_newline else newline_ids
        wanted = (self._repeat, self._presence, self._frequency) != (1.0, 0.0, 0.0)
        self._last = sampling.repeat_last_n if wanted else 0
        self._window: deque[int] = deque()
        self._counts: dict[int, int] = {}

    def accept(self, token_id: int) -> None:
        if self._last == 0:
            return
        self._window.append(token_id)
        if token_id not in self._exempt:
            self._counts[token_id] = self._counts.get(token_id, 0) + 1
        if 0 < self._last < len(self._window):
            self._forget(self._window.popleft())

    def _forget(self, token_id: int) -> None:
        left = self._counts.get(token_id, 0) - 1
        if left > 0:
            self._counts[token_id] = left
        else:
            self._counts.pop(token_id, None)

    def on_all(self, logits: Floats) -> Floats:
        """Float32 [vocabulary] after penalties; the same array where there are none."""
        known = [token_id for token_id in self._counts if token_id < logits.size]
        if not known:
            return logits
        adjusted = logits.copy()
        adjusted[known] = self._lowered(logits[known], known)
        return adjusted

    def on_top(self, ids: Ids, values: Floats, lse: float, vocabulary: int) -> TopK:
        """The same on the graph's top-k, and how far its order can still be trusted."""
        size, is_whole = len(ids), len(ids) >= vocabulary
        if not self._counts:
            return TopK(Candidates(ids, values), size, float(values[-1]), lse, is_whole)
        floor = float(values[-1])
        listed = ids.tolist()
        places = [place for place, token_id in enumerate(listed) if token_id in self._counts]
        if places:
            values = values.copy()
            values[places] = self._lowered(values[places], [listed[place] for place in places])
            order = np.lexsort((ids, -values))
            ids, values = ids[order], values[order]
        certain = self._certain(values, floor, has_changed=bool(places), is_whole=is_whole)
        return TopK(Candidates(ids, values), certain, floor, math.nan, is_whole)

    def _certain(self, values: Floats, floor: float, *, has_changed: bool, is_whole: bool) -> int:
        if is_whole:
            return values.size
        if self._repeat < 1 or self._presence < 0 or self._frequency < 0:
            return 0  # an unlisted id may have been raised above all listed ones
        return int((values > floor).sum()) if has_changed else values.size

    def _lowered(self, values: Floats, ids: list[int]) -> Floats:
        """CTRL's penalty (arXiv 1909.05858) with the usual fix for negative logits, then OpenAI's."""
        repeat = np.float32(self._repeat)
        scaled = np.where(values <= 0, values * repeat, values / repeat)
        counts = np.array([self._counts[token_id] for token_id in ids], np.float32)
        shift = counts * np.float32(self._frequency) + np.float32(self._presence)
        return (scaled - shift).astype(np.float32)


def only_allowed(top: TopK, allowed: Bits) -> TopK:
    """The top-k without the ids that a constraint forbids; what the others weigh is unknown then."""
    keep = is_allowed(allowed, top.candidates.ids)
    candidates = Candidates(top.candidates.ids[keep], top.candidates.logits[keep])
    certain = int(keep[: top.certain].sum())
    return TopK(candidates, certain, top.floor, math.nan, top.is_whole)


def draw(probabilities: Doubles, generator: np.random.Generator) -> int:
    """An index by the inverse of the cumulative distribution; takes one random number."""
    cumulative = np.cumsum(probabilities)
    wanted = generator.random() * cumulative[-1]
    return min(int(np.searchsorted(cumulative, wanted, side="right")), probabilities.size - 1)


def topk_is_sufficient(sampling: Sampling, top: TopK) -> bool:
    """Whether the graph's top-k gives exactly the distribution that all logits would give."""
    return plan_kept(sampling, top) is not None


def plan_kept(sampling: Sampling, top: TopK) -> int | None:
    """How many leading candidates enter the rest of the chain; None: the top-k cannot tell.

    With top_k within the certain ones these are top_k candidates, still to be `filtered`. Otherwise
    top_p and min_p have been settled here (both keep a prefix) and only the draw is left.
    """
    if sampling.temperature <= 0:
        return 1 if top.certain else None
    if sampling.mirostat:
        return None
    if 0 < sampling.top_k <= top.certain:
        return sampling.top_k
    if top.is_whole or sampling.tfs_z < 1 or sampling.typical_p < 1 or not top.certain:
        return None
    prefixes = [plan_top_p(sampling, top), plan_min_p(sampling, top)]
    if None in prefixes:
        return None
    kept = min(prefix for prefix in prefixes if prefix is not None)
    return kept if kept <= top.certain else None


def plan_top_p(sampling: Sampling, top: TopK) -> int | None:
    """The prefix that top_p keeps of the whole vocabulary; certain + 1 means "more than listed"."""
    more = top.certain + 1
    if sampling.top_p >= 1:
        return more
    if math.isnan(top.log_total) or sampling.top_k > 0:
        return None  # what the probabilities are a share of is unknown
    logits = top.candidates.logits[: top.certain].astype(np.float64)
    cumulative = np.cumsum(np.exp(logits - top.log_total))
    if bool((np.abs(cumulative - sampling.top_p) < TOP_P_MARGIN).any()):
        return None
    return more if cumulative[-1] < sampling.top_p else kept_by_top_p(cumulative, sampling.top_p)


def plan_min_p(sampling: Sampling, top: TopK) -> int | None:
    """The prefix that min_p keeps of the whole vocabulary; certain + 1 means "more than listed"."""
    more = top.certain + 1
    if sampling.min_p <= 0:
        return more
    logits = top.candidates.logits
    limit = float(logits[0]) + math.log(min(sampling.min_p, 1.0))
    return more if top.floor >= limit else kept_by_min_p(logits[: top.certain], sampling.min_p)
