"""Answers that are brought to a valid end before their limit, and left alone before that."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest

from backends.engine.filters import allowed_ids
from backends.engine.grammar import Grammar, GrammarCompiler, GrammarSpec, GrammarVocabulary
from tests.bench.schemas import schemas

END_ID, THOUGHT_ID = 256, 257
WORDS = [b'",', b'": "', b"the quick brown", b"fox jumps", b'":', b"[[", b"{"]
PIECES = [*(bytes([value]) for value in range(256)), b"</s>", b"</think>", *WORDS]
COMPILER = GrammarCompiler(
    GrammarVocabulary(
        pieces=PIECES, special_ids=frozenset({END_ID, THOUGHT_ID}), end_ids=frozenset({END_ID})
    )
)


def compiled(schema: object, **fields: Any) -> Grammar:
    rules = fields.pop("rules", "start: @d\n")
    spec = GrammarSpec(rules=rules, schemas=(("d", json.dumps(schema).encode()),), **fields)
    return COMPILER.compile(spec)


def allowed(grammar: Grammar) -> list[int]:
    ids = allowed_ids(np.frombuffer(grammar.allowed(), np.uint8), len(PIECES))
    assert ids is not None
    return ids.tolist()


def wander(grammar: Grammar, limit: int, seed: int, *, avoids: bytes = b"") -> tuple[str, int]:
    """What somebody without a plan says in at most `limit` ids, and how many they were.

    The end is said only where there is nothing else; ids whose text begins with one of `avoids`
    only where the others are used up.
    """
    draw = random.Random(seed)
    said: list[bytes] = []
    for count in range(1, limit + 1):
        ids = allowed(grammar)
        liked = [i for i in ids if i != END_ID and PIECES[i][:1] not in [b"%c" % c for c in avoids]]
        token_id = draw.choice(liked or ids)
        if token_id == END_ID:
            return b"".join(said).decode(), count
        said.append(PIECES[token_id])
        grammar.accept(token_id)
    return b"".join(said).decode(errors="replace"), -1


TEXT = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2},
        "kind": {"enum": ["red", "green"]},
        "when": {"type": "string", "format": "date"},
        "mail": {"type": "string", "format": "email"},
        "code": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
        "count": {"type": "integer", "minimum": 17, "maximum": 430},
        "on": {"type": "boolean"},
    },
    "required": ["name", "kind", "when", "mail", "code", "count", "on"],
}


@pytest.mark.parametrize(
    "schema",
    [
        TEXT,
        ITEM,
        {"type": "array", "items": ITEM, "minItems": 1},
        {"type": "array", "items": {"type": "array", "items": {"type": "string"}}},
        {"type": "object"},
        {"anyOf": [ITEM, {"type": "null"}]},
    ],
)
@pytest.mark.parametrize("limit", [260, 400])
def test_an_answer_that_would_never_end_ends_valid_in_time(
    schema: dict[str, Any], limit: int
) -> None:
    for seed in range(3):
        grammar = compiled(schema)
        grammar.limit(limit)
        text, count = wander(grammar, limit, seed, avoids=b'"}]')
        assert 0 < count <= limit, text
        jsonschema.validate(json.loads(text), schema)


def test_two_hundred_schemas_land() -> None:
    landed = 0
    wanted = [schema for schema in schemas()[::5] if not schema.is_recursive]
    for seed, each in enumerate(wanted):
        grammar = compiled(each.schema)
        grammar.limit(500)
        text, count = wander(grammar, 500, seed, avoids=b'"}]')
        if count > 0:
            landed += 1
            jsonschema.validate(json.loads(text), each.schema)
    assert landed >= 0.95 * len(wanted)


def test_nothing_is_disturbed_before_the_end_is_near() -> None:
    free, limited = compiled(TEXT), compiled(TEXT)
    limited.limit(1000)
    for letter in '{"a":"' + "x" * 900:
        assert free.allowed() == limited.allowed()
        free.accept(ord(letter))
        limited.accept(ord(letter))
    assert limited.forced == 0
    text, count = wander(limited, 1000, 1, avoids=b'"')
    assert text.endswith('"}') and count > 0
    assert 2 <= limited.forced <= 5  # quote and brace, maybe the rest of a character before them
    assert limited.allowed() != free.allowed()


def test_a_limit_that_is_too_short_for_any_document_changes_nothing() -> None:
    free, limited = compiled(ITEM), compiled(ITEM)
    limited.limit(20)
    _, count = wander(limited, 20, 3)
    assert count == -1
    assert limited.forced == 0
    assert wander(free, 20, 3)[1] == -1


def test_a_thought_is_ended_so_that_the_document_comes() -> None:
    rules = "start: thinking @d\nthinking: FREE? <[257]>\nFREE: /(.|\\n)*/\n"
    for closing in (THOUGHT_ID, None):
        if closing is None:
            rules = 'start: thinking @d\nthinking[suffix="</think>"]: /(.|\\n)*/\n'
        grammar = compiled(TEXT, rules=rules, closings=(closing or "</think>",))
        grammar.limit(200)
        text, count = wander(grammar, 200, 5, avoids=b"<")
        assert 0 < count <= 200
        thought, tag, document = text.partition("</think>")
        assert tag and len(thought) > 50
        assert set(json.loads(document)) == {"a"}
