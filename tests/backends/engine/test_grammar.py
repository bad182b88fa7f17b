from __future__ import annotations

import json
import time

import jsonschema
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.engine.filters import allowed_ids, likeliest
from backends.engine.grammar import (
    MAX_GRAMMAR_BYTES,
    Grammar,
    GrammarCompiler,
    GrammarSpec,
    GrammarVocabulary,
    tightened,
)
from backends.engine.sampling import Sampler, log_sum_exp
from backends.types import EngineError, Sampling
from tests.bench.grammar import Constrained, is_valid
from tests.bench.schemas import schemas

BEGIN_ID, END_ID, OTHER_END_ID = 256, 257, 258
PIECES = [*(bytes([value]) for value in range(256)), b"<s>", b"</s>", b"<eot>", b'",', b'": "', b""]
SPECIAL = frozenset({BEGIN_ID, END_ID, OTHER_END_ID})
COMPILER = GrammarCompiler(
    GrammarVocabulary(pieces=PIECES, special_ids=SPECIAL, end_ids=frozenset({END_ID, OTHER_END_ID}))
)


def compiled(schema: object, compiler: GrammarCompiler = COMPILER) -> Grammar:
    document = json.dumps(schema).encode()
    return compiler.compile(GrammarSpec(rules="start: @d\n", schemas=(("d", document),)))


def allowed(grammar: Grammar) -> set[int]:
    ids = allowed_ids(np.frombuffer(grammar.allowed(), np.uint8), len(PIECES))
    assert ids is not None
    return set(ids.tolist())


def say(grammar: Grammar, text: str) -> set[int]:
    """Every byte must be allowed; what may come then."""
    for value in text.encode():
        assert value in allowed(grammar), (text, value)
        grammar.accept(value)
    return allowed(grammar)


def test_end_ids_come_exactly_where_the_document_is_whole() -> None:
    grammar = compiled({"type": "object", "properties": {"a": {"type": "boolean"}}})
    assert not allowed(grammar) & SPECIAL
    assert not say(grammar, '{"a": tru') & SPECIAL
    assert say(grammar, "e}") == {END_ID, OTHER_END_ID}


def test_control_ids_and_broken_characters_are_no_text() -> None:
    inside = say(compiled({"type": "string"}), '"x')
    assert BEGIN_ID not in inside
    assert {0xFF, 0x80, ord("\n")} & inside == set()
    assert {ord("y"), 0xC3} <= inside


def test_each_request_has_a_state_of_its_own() -> None:
    first, second = compiled({"type": "integer"}), compiled({"type": "integer"})
    say(first, "12")
    assert END_ID not in allowed(second)
    assert END_ID in allowed(first)


def test_white_space_is_bounded() -> None:
    grammar = compiled({"type": "object"})
    inside = say(grammar, "{\n" + " " * 24)
    assert {ord('"'), ord("}")} <= inside
    assert not inside & set(b" \n\t\r")


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {"type": "string"}}, '"not"'),
        ({"type": "array", "uniqueItems": True}, '"uniqueItems"'),
        ({"if": {}, "then": {}}, '"if", "then"'),
        ({"type": "string", "format": "weird"}, "Unknown format: weird"),
        ({"type": "string", "pattern": "(a)\\1"}, "backreferences"),
        ({"type": "strin"}, "strin"),
        ({"$ref": "#/$defs/none"}, "/$defs/none"),
        ({"$ref": "https://example.com/x"}, "https://example.com/x"),
        ({"$ref": "#"}, "no text can meet it"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum (5) is greater"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"x-guidance": {"lenient": True}, "not": {}}, '"not"'),
        ({"enum": ["x" * MAX_GRAMMAR_BYTES]}, "larger than 256 KiB"),
    ],
)
def test_what_cannot_be_honoured_is_named(schema: object, named: str) -> None:
    with pytest.raises(EngineError) as refusal:
        compiled(schema)
    assert refusal.value.code == "invalid"
    assert named in str(refusal.value)
    assert "<state>" not in str(refusal.value)


@pytest.mark.parametrize("depth", [200, 3_000, 100_000])
def test_deep_schemas_are_refused(depth: int) -> None:
    document = b'{"items":' * depth + b"{}" + b"}" * depth
    with pytest.raises(EngineError):
        COMPILER.compile(GrammarSpec(rules="start: @d\n", schemas=(("d", document),)))


def test_hostile_schemas_compile_in_bounded_time() -> None:
    wide = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(2000)}}
    regular = {"type": "string", "pattern": "^([a-z]+)+@([a-z]{1,60}\\.){1,50}$"}
    long = {"type": "array", "items": {"type": "string"}, "minItems": 10**5, "maxItems": 10**6}
    started = time.monotonic()
    for schema in (wide, regular, long, {"type": "string", "maxLength": 10**7}):
        grammar = compiled(schema)
        grammar.allowed()
    assert time.monotonic() - started < 10


def test_a_model_without_an_end_id_is_refused() -> None:
    known = GrammarVocabulary(pieces=PIECES, special_ids=SPECIAL, end_ids=frozenset())
    with pytest.raises(EngineError, match="no end id"):
        compiled({"type": "object"}, GrammarCompiler(known))


def test_tighter_schemas_allow_nothing_new() -> None:
    closed = {"type": "object", "properties": {"properties": {"type": "integer"}}}
    tight = tightened(closed)
    assert isinstance(tight, dict)
    assert tight["additionalProperties"] is False
    assert tight["properties"]["properties"]["maximum"] == 2**53 - 1
    opened = closed | {"additionalProperties": True}
    assert tightened(opened)["additionalProperties"] is True  # type: ignore[index]
    parts = {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}
    assert tightened(parts) is parts


def test_where_the_tighter_schema_cannot_be_met_the_given_one_counts() -> None:
    grammar = compiled(
        {"type": "object", "properties": {"a": {}}, "required": ["a"], "minProperties": 2}
    )
    assert END_ID in say(grammar, '{"a": 1, "b": 2}')


class Fixed:
    """A constraint that allows the same ids for ever."""

    def __init__(self, ids: set[int], vocabulary: int) -> None:
        bits = np.zeros(vocabulary, np.uint8)
        bits[list(ids)] = 1
        self._bits = np.packbits(bits, bitorder="little").tobytes()
        self.accepted: list[int] = []

    def allowed(self) -> bytes:
        return self._bits

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)

    def limit(self, tokens: int) -> None:
        pass

    @property
    def forced(self) -> int:
        return 0


SAMPLINGS = [
    Sampling(temperature=0.0, seed=1),
    Sampling(seed=1),
    Sampling(temperature=1.5, top_k=0, top_p=1.0, seed=1),
    Sampling(top_k=5, min_p=0.05, typical_p=0.7, tfs_z=0.9, seed=1),
    Sampling(repeat_penalty=1.4, presence_penalty=0.4, seed=1),
    Sampling(mirostat=1, seed=1),
    Sampling(mirostat=2, seed=1),
]


@settings(max_examples=150)
@given(
    st.integers(0, 999),
    st.sets(st.integers(0, 199), min_size=1, max_size=150),
    st.sampled_from(SAMPLINGS),
)
def test_only_allowed_ids_are_sampled_and_both_paths_agree(
    seed: int, ids: set[int], sampling: Sampling
) -> None:
    logits = (np.random.default_rng(seed).standard_normal(200) * 3).astype(np.float32)
    history = (3, 3, 50, 120)
    samplers = [Sampler(sampling, history=history, constraint=Fixed(ids, 200)) for _ in range(2)]
    top = likeliest(logits, 64)
    whole = [samplers[0].sample(logits) for _ in range(5)]
    assert set(whole) <= ids
    for expected in whole:
        chosen = samplers[1].sample_top(top.ids, top.logits, log_sum_exp(logits), 200)
        assert (samplers[1].sample(logits) if chosen is None else chosen) == expected


def test_the_prompt_is_not_held_to_the_grammar() -> None:
    constraint = Fixed({1}, 8)
    sampler = Sampler(Sampling(repeat_penalty=1.1), history=(4, 5), constraint=constraint)
    sampler.accept(1)
    assert constraint.accepted == [1]


def test_no_id_allowed_is_an_error_and_no_endless_loop() -> None:
    with pytest.raises(EngineError, match="no id"):
        Sampler(Sampling(), constraint=Fixed(set(), 8)).sample(np.ones(8, np.float32))


@pytest.fixture(scope="module")
def constrained(tmp_path_factory: pytest.TempPathFactory):
    built = Constrained(tmp_path_factory.mktemp("random"))
    yield built
    built.engine.close()


def test_random_weights_end_with_valid_documents(constrained: Constrained) -> None:
    """The short form of `python -m tests.bench.grammar`."""
    wanted = [schema for schema in schemas() if not schema.is_recursive][::12]
    for seed, schema in enumerate(wanted):
        constrained.engine.add(constrained.request(schema.name, schema.schema, seed))
    outcomes = constrained.run()
    by_name = {schema.name: schema.schema for schema in wanted}
    stopped = [outcome for outcome in outcomes if outcome.reason == "stop"]
    assert len(outcomes) == len(wanted)
    assert len(stopped) >= 0.95 * len(wanted)
    assert all(is_valid(outcome, by_name[outcome.name]) for outcome in stopped)


def test_neighbours_are_not_constrained_and_unchanged(constrained: Constrained) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    free = constrained.request("free", schema, 5, max_tokens=30)
    free = msgspec.structs.replace(free, constraint=None)
    constrained.engine.add(free)
    (alone,) = constrained.run()
    constrained.engine.add(free)
    constrained.engine.add(constrained.request("held", schema, 6, max_tokens=200))
    together = {outcome.name: outcome for outcome in constrained.run()}
    assert together["free"].text == alone.text
    jsonschema.validate(json.loads(together["held"].text), schema)


def test_a_limit_cuts_with_length(constrained: Constrained) -> None:
    schema = {"type": "string", "minLength": 500}
    constrained.engine.add(constrained.request("cut", schema, 1, max_tokens=9))
    (outcome,) = constrained.run()
    assert (outcome.reason, outcome.tokens) == ("length", 9)
    assert not is_valid(outcome, schema)


def test_logprobs_of_constrained_rows_are_the_models_own(constrained: Constrained) -> None:
    request = constrained.request("l", {"type": "boolean"}, 2, top_logprobs=3, max_tokens=50)
    constrained.engine.add(request)
    logprobs = []
    while constrained.engine.has_work():
        logprobs += [e for e in constrained.engine.step() if hasattr(e, "logprob")]
    assert logprobs
    for event in logprobs:
        assert event.logprob < 0
        assert len(event.top) == 3
        assert event.top[0][1] >= event.logprob
