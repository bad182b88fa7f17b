"""Answers held to a grammar: which ids may come next. Owns everything that is llguidance.

`GrammarCompiler` turns a `GrammarSpec` into a `Grammar`, one per request, in bounded size and time;
what cannot be honoured is refused by name. Masks are computed on a small pool as soon as an id is
accepted, while the runtime runs the graph for the next one; `allowed` only waits for what is left.
End ids are allowed exactly where the grammar accepts, so an answer that ends by itself is valid.
Shortly before its limit an answer is brought to its end: `backends.engine.landing`.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from backends.engine.landing import Landing, LandingTable
from backends.types import EngineError

MAX_GRAMMAR_BYTES = 256 << 10
# What may stand between two parts of a document: a space, or a new line and its indentation. Models
# get lost in white space where they may.
_WHITE_SPACE = r"( |\n[ \t]{0,24})"
# Work units of the library: about a quarter of a second to build, 20 ms to compute one mask.
_LIMITS = LLParserLimits(
    initial_lexer_fuel=10_000_000, step_lexer_fuel=300_000, max_grammar_size=500_000
)
_KEPT_GRAMMARS = 32
_POOL_THREADS = 2


class GrammarSpec(msgspec.Struct, frozen=True, kw_only=True):
    """`rules` is a Lark text whose first rule is `start`; its `@name` refer to `schemas` (JSON).

    `<[id]>` in `rules` is one id of the vocabulary. `closings` are texts, or ids of special pieces,
    that end what may come before the document: an answer that must end soon ends that first.
    """

    rules: str
    schemas: tuple[tuple[str, bytes], ...] = ()
    closings: tuple[str | int, ...] = ()


class GrammarVocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """`pieces` are the exact bytes of each id; `special_ids` match no text, only their `<[id]>`."""

    pieces: Sequence[bytes]
    special_ids: frozenset[int]
    end_ids: frozenset[int]


class Grammar:
    """What one answer may still say. Used by one thread at a time; computes on the pool."""

    def __init__(self, matcher: LLMatcher, pool: ThreadPoolExecutor, landing: Landing) -> None:
        self._matcher = matcher
        self._pool = pool
        self._landing = landing
        self._next: Future[bytes] = pool.submit(_mask, matcher)

    def limit(self, tokens: int) -> None:
        """No more than `tokens` ids will come, the end id among them: the answer ends before that.

        To be said before any id is accepted. Never blocks.
        """
        self._next = self._pool.submit(_limit, self._matcher, self._next, self._landing, tokens)

    def accept(self, token_id: int) -> None:
        """Takes an allowed id that is no end id. Never blocks; what goes wrong, `allowed` tells."""
        self._next = self._pool.submit(_advance, self._matcher, self._next, self._landing, token_id)

    def allowed(self) -> bytes:
        """Bit i, lowest first, of uint8 [vocabulary/8]: id i may come. Raises EngineError."""
        return self._next.result()

    @property
    def forced(self) -> int:
        """Ids that came because the answer had to end in time. Exact once `allowed` was asked."""
        return self._landing.forced


class GrammarCompiler:
    """Compiles for one vocabulary; keeps the last grammars. Used by one thread at a time."""

    def __init__(self, vocabulary: GrammarVocabulary) -> None:
        self._vocabulary = vocabulary
        self._tokenizer: LLTokenizer | None = None
        self._table: LandingTable | None = None
        self._cut: Callable[[bytes], list[int]] = lambda _: []
        self._kept: OrderedDict[GrammarSpec, LLMatcher] = OrderedDict()
        self._pool = ThreadPoolExecutor(_POOL_THREADS, thread_name_prefix="grammar")

    def compile(self, spec: GrammarSpec) -> Grammar:
        """Raises EngineError("invalid"), naming what is not supported or wrong."""
        matcher = self._kept.get(spec)
        if matcher is None:
            try:
                matcher = self._compiled(spec)
            except RecursionError:
                raise EngineError("invalid", "format is nested too deeply") from None
            while len(self._kept) >= _KEPT_GRAMMARS:
                self._kept.popitem(last=False)
            self._kept[spec] = matcher
        self._kept.move_to_end(spec)
        closings = [self._closing(text) for text in spec.closings]
        landing = Landing(self._landing_table(), closings)
        return Grammar(matcher.deep_copy(), self._pool, landing)

    def _closing(self, text: str | int) -> list[int]:
        return [text] if isinstance(text, int) else self._cut(text.encode())

    def _landing_table(self) -> LandingTable:
        known = self._vocabulary
        if self._table is None:
            hidden = known.special_ids | known.end_ids
            self._table = LandingTable(known.pieces, hidden, known.end_ids)
        return self._table

    def _compiled(self, spec: GrammarSpec) -> LLMatcher:
        """With the tighter schemas where they can be met, with the client's own where not."""
        if len(spec.rules) + sum(len(schema) for _, schema in spec.schemas) > MAX_GRAMMAR_BYTES:
            raise EngineError("invalid", f"format is larger than {MAX_GRAMMAR_BYTES >> 10} KiB")
        schemas = {name: _decoded(schema) for name, schema in spec.schemas}
        tight = {name: tightened(schema) for name, schema in schemas.items()}
        try:
            return self._matcher(spec.rules, tight)
        except EngineError:
            if tight == schemas:
                raise
        return self._matcher(spec.rules, schemas)

    def _matcher(self, rules: str, schemas: dict[str, object]) -> LLMatcher:
        grammars: list[dict[str, object]] = [{"name": "answer", "lark_grammar": rules}]
        grammars += [
            {"name": name, "json_schema": _with_settings(schema)}
            for name, schema in schemas.items()
        ]
        source = json.dumps({"grammars": grammars})
        matcher = LLMatcher(self._library_tokenizer(), source, log_level=0, limits=_LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()  # grammars that no text can meet show only here
        if matcher.is_error():
            raise EngineError("invalid", f"format cannot be honoured: {_reason(matcher)}")
        matcher.reset()
        return matcher

    def _library_tokenizer(self) -> LLTokenizer:
        """Made at the first use: a third of a second for 130,000 ids."""
        if self._tokenizer is None:
            known = self._cut = _Vocabulary(self._vocabulary)
            end_ids = sorted(self._vocabulary.end_ids)
            self._tokenizer = LLTokenizer(
                TokenizerWrapper(known), n_vocab=len(known.tokens), eos_token=end_ids
            )
        return self._tokenizer


class _Vocabulary:
    """The shape llguidance wants. Text that a grammar leaves no choice in is cut greedily."""

    def __init__(self, vocabulary: GrammarVocabulary) -> None:
        if not vocabulary.end_ids:
            raise EngineError("invalid", "this model has no end id, so format cannot be honoured")
        self.tokens = list(vocabulary.pieces)
        self.special_token_ids = sorted(vocabulary.special_ids | vocabulary.end_ids)
        self.eos_token_id = min(vocabulary.end_ids)
        self.bos_token_id = None
        hidden = set(self.special_token_ids)
        self._ids: dict[bytes, int] = {}
        for token_id, piece in enumerate(self.tokens):
            if piece and token_id not in hidden:
                self._ids.setdefault(piece, token_id)
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: bytes) -> list[int]:
        ids: list[int] = []
        at = 0
        while at < len(text):
            lengths = range(min(self._longest, len(text) - at), 0, -1)
            length = next((n for n in lengths if text[at : at + n] in self._ids), 0)
            if not length:
                break
            ids.append(self._ids[text[at : at + length]])
            at += length
        return ids


def tightened(schema: object) -> object:
    """The schema, allowing nothing more: what a model does not need and gets lost in is left out.

    Objects whose `properties` are all that is said have no others, integers are those that every
    reader of JSON keeps exact. Schemas that are put together from parts which see each other's
    properties stay as they are.
    """
    return schema if _has_parts(schema) else _tight(schema)


_JOINING = ("allOf", "anyOf", "oneOf", "$ref", "if", "then", "else", "dependentSchemas")
_NUMBER_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "enum", "const")
_EXACT_INTEGER = (1 << 53) - 1
_OPEN_ENDED = ("additionalProperties", "unevaluatedProperties", "patternProperties")


def _has_parts(schema: object) -> bool:
    if isinstance(schema, list):
        return any(map(_has_parts, schema))
    if not isinstance(schema, dict):
        return False
    joins = any(key in schema for key in _JOINING)
    several = isinstance(parts := schema.get("allOf"), list) and len(parts) > 1
    return (joins and "properties" in schema) or several or any(map(_has_parts, schema.values()))


def _tight(schema: object) -> object:
    """Property names are not keywords: what is under `properties` is a schema each."""
    if isinstance(schema, list):
        return [_tight(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    tight = {
        key: value if key in ("enum", "const", "default", "examples") else _tight(value)
        for key, value in schema.items()
        if key != "properties"
    }
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    is_integer = "integer" in kinds and "number" not in kinds
    if is_integer and not any(key in schema for key in _NUMBER_LIMITS):
        tight |= {"minimum": -_EXACT_INTEGER, "maximum": _EXACT_INTEGER}
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return tight | ({"properties": properties} if "properties" in schema else {})
    rest = {} if any(key in schema for key in _OPEN_ENDED) else {"additionalProperties": False}
    return tight | {"properties": {n: _tight(value) for n, value in properties.items()}} | rest


def _decoded(schema: bytes) -> object:
    try:
        return json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise EngineError("invalid", f"format is no JSON Schema: {error}") from error


def _with_settings(schema: object) -> object:
    """A schema from outside must not bring settings of the library."""
    if not isinstance(schema, dict):
        return schema
    return {**schema, "x-guidance": {"whitespace_pattern": _WHITE_SPACE}}


def _reason(matcher: LLMatcher) -> str:
    """The library's first line, without the state that it prints behind it."""
    text = matcher.get_error().split("<state>")[0].strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or lines[0] == "NoExtensionBias":
        return "no text can meet it"
    return " ".join(lines)[:500]


def _mask(matcher: LLMatcher) -> bytes:
    mask = matcher.compute_bitmask()
    if matcher.is_error():
        raise EngineError("invalid", f"format became too complex: {_reason(matcher)}")
    return mask


def _limit(matcher: LLMatcher, before: Future[bytes], landing: Landing, tokens: int) -> bytes:
    mask = before.result()
    landing.limit(tokens, matcher)
    return mask


def _advance(matcher: LLMatcher, before: Future[bytes], landing: Landing, token_id: int) -> bytes:
    before.result()
    if not matcher.consume_token(token_id):
        raise EngineError("internal", f"the grammar refuses an id: {_reason(matcher)}")
    mask = _mask(matcher)
    landing.accepted(token_id, matcher)
    return landing.narrowed(mask)
