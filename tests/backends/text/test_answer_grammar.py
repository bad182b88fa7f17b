"""What `format` demands, judged by what the compiled grammar lets through."""

from __future__ import annotations

import json

import numpy as np
import pytest

from backends.engine.filters import is_allowed
from backends.engine.grammar import Grammar, GrammarCompiler, GrammarVocabulary
from backends.text.answer_grammar import answer_grammar, literal
from backends.text.markup import Markup
from backends.text.tool_families import FAMILIES, tool_family
from backends.text.tools import Tools
from backends.types import Chat, EngineError
from tests.backends.text.small_tokenizers import byte_level, with_special

SCHEMA = b'{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}'
PARAMETERS = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
TOOLS = Tools({"add": PARAMETERS, "get": {}})
CALL = '{"name": "add", "arguments": {"x": 1}}'
PLAIN = byte_level()
MARKED = with_special("<think>", "</think>", "<tool_call>", "</tool_call>", "<|channel|>",
                      "<|message|>", "<|end|>", "<|start|>")  # fmt: skip
COUNT = 300


def compiled(
    markup: Markup, tokenizer=PLAIN, wanted: bytes = SCHEMA, required: tuple[str, ...] = ()
) -> Grammar:
    known = GrammarVocabulary(
        pieces=tokenizer.pieces(COUNT),
        special_ids=tokenizer.special_ids,
        end_ids=frozenset({tokenizer.special.eos_id}),
    )
    return GrammarCompiler(known).compile(answer_grammar(wanted, markup, tokenizer, required))


def lets_through(
    markup: Markup,
    text: str,
    tokenizer=PLAIN,
    wanted: bytes = SCHEMA,
    required: tuple[str, ...] = (),
) -> bool:
    """Whether the whole text may be said and then ended."""
    grammar = compiled(markup, tokenizer, wanted, required)
    for token_id in (*tokenizer.encode(text), tokenizer.special.eos_id):
        allowed = np.frombuffer(grammar.allowed(), np.uint8)
        if not is_allowed(allowed, np.array([token_id]))[0]:
            return False
        if token_id != tokenizer.special.eos_id:
            grammar.accept(token_id)
    return True


THINKING = Markup(thinking_tags=("<think>", "</think>"))
INSIDE = Markup(thinking_tags=("<think>", "</think>"), starts_inside=True)


@pytest.mark.parametrize("tokenizer", [PLAIN, MARKED], ids=["text", "special"])
def test_thoughts_are_free_the_document_is_not(tokenizer) -> None:
    assert lets_through(THINKING, '<think>Any {"th', tokenizer) is False
    assert lets_through(THINKING, '<think>Any {"thing".</think>\n\n{"a": 1}', tokenizer)
    assert lets_through(THINKING, '<think></think>{"a": 1}', tokenizer)
    assert lets_through(THINKING, '{"a": 1}', tokenizer)
    assert not lets_through(THINKING, "<think>x</think>no", tokenizer)
    assert not lets_through(THINKING, 'x<think>x</think>{"a": 1}', tokenizer)
    assert lets_through(INSIDE, 'hm</think> {"a": 1}', tokenizer)
    assert not lets_through(Markup(), '<think>x</think>{"a": 1}', tokenizer)


def test_harmony_has_its_document_in_the_final_channel() -> None:
    markup = Markup(is_harmony=True, thinking_tags=("<|channel|>analysis<|message|>", "<|end|>"))
    final = '<|channel|>final<|message|>{"a": 1}'
    thought = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
    for text in (final, thought + final, thought + thought + final):
        assert lets_through(markup, text, MARKED)
    assert not lets_through(markup, thought + final.replace("1", "no"), MARKED)
    assert not lets_through(markup, '{"a": 1}', MARKED)


def family(name: str) -> Markup:
    marks = "".join(next(f.marks for f in FAMILIES if f.name == name)) if name else ""
    return Markup(tools=TOOLS, family=tool_family(marks))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>{CALL}</tool_call>"),
        ("mistral", f"[TOOL_CALLS][{CALL}]"),
        ("granite", f"<|tool_call|>[{CALL}, {CALL}]"),
        ("llama", CALL.replace("arguments", "parameters")),
        ("llama", "<|python_tag|>" + CALL.replace("arguments", "parameters")),
        ("nemotron", f"<TOOLCALL>[{CALL}]</TOOLCALL>"),
        ("", CALL),
    ],
)
def test_with_tools_the_answer_is_calls_or_the_document(name: str, text: str) -> None:
    markup = family(name)
    assert lets_through(markup, text)
    assert lets_through(markup, '{"a": 1}')
    assert not lets_through(markup, text.replace('"add"', '"rm"'))
    assert not lets_through(markup, text.replace(": 1}", ": no}"))
    reader = markup.family.parser(TOOLS) if markup.family else None
    assert reader is not None
    pieces = [reader.push(text), reader.flush()]
    assert sum(len(calls) for _, calls in pieces) == text.count('"add"')


@pytest.mark.parametrize("name", ["deepseek", "llama-pythonic", "gemma", "glm", "ministral"])
def test_calls_that_no_grammar_describes_are_refused_by_name(name: str) -> None:
    with pytest.raises(EngineError, match=f"format together with tools.*{name}") as refusal:
        answer_grammar(SCHEMA, family(name), PLAIN)
    assert refusal.value.code == "invalid"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", f"<tool_call>{CALL}</tool_call>"),
        ("mistral", f"[TOOL_CALLS][{CALL}]"),
        ("llama", CALL.replace("arguments", "parameters")),
        ("", CALL),
    ],
)
def test_where_calls_are_required_there_is_nothing_else(name: str, text: str) -> None:
    markup = family(name)
    assert lets_through(markup, text, required=("add",))
    assert lets_through(markup, text, required=("get", "add"))
    assert not lets_through(markup, text, required=("get",))
    assert not lets_through(markup, '{"a": 1}', required=("add",))
    assert not lets_through(markup, "", required=("add",))
    assert not lets_through(markup, "Well. " + text, required=("add",))


def test_thoughts_may_come_before_a_required_call() -> None:
    hermes = family("hermes").family
    markup = Markup(tools=TOOLS, family=hermes, thinking_tags=("<think>", "</think>"))
    text = f"<think>I add.</think>\n<tool_call>{CALL}</tool_call>"
    assert lets_through(markup, text, required=("add",))
    assert not lets_through(markup, "<think>I add.</think>\nNo.", required=("add",))


@pytest.mark.parametrize(
    ("markup", "message"),
    [
        (family("glm"), "a required tool call is not supported for calls in the form of 'glm'"),
        (Markup(is_harmony=True, tools=TOOLS, family=family("").family), "form of 'harmony'"),
        (Markup(), "a required tool call needs tools"),
        (Markup(tools=Tools({"get": {}}), family=family("").family), "needs the tool 'add'"),
    ],
)
def test_required_calls_that_are_refused(markup: Markup, message: str) -> None:
    with pytest.raises(EngineError, match=message) as refusal:
        answer_grammar(None, markup, PLAIN, ("add",))
    assert refusal.value.code == "invalid"


def test_any_json_object() -> None:
    assert lets_through(Markup(), '{"x": [1, {"y": null}]}', wanted=b'"json"')
    assert not lets_through(Markup(), "[1]", wanted=b'"json"')


@pytest.mark.parametrize("wanted", [b'"xml"', b"[]", b"{", b"1", b"[" * 100_000])
def test_what_is_no_format_is_refused(wanted: bytes) -> None:
    with pytest.raises(EngineError) as refusal:
        answer_grammar(wanted, Markup(), PLAIN)
    assert refusal.value.code == "invalid"


def test_marks_are_ids_where_the_tokenizer_has_them() -> None:
    thinking = MARKED.encode("<think>")[0]
    assert literal('a"<think>', MARKED) == f'"a\\"" <[{thinking}]>'
    assert literal("<think>", PLAIN) == '"<think>"'


@pytest.mark.parametrize(
    ("chat", "template", "prompt", "tags", "inside"),
    [
        ({"think": True}, "<think></think>", "x", ("<think>", "</think>"), False),
        ({"think": "low"}, "<think></think>", "x<think>\n", ("<think>", "</think>"), True),
        ({"think": False}, "<think></think>", "x<think>\n", None, False),
        ({"think": True}, "[THINK][/THINK]", "x", ("[THINK]", "[/THINK]"), False),
        ({"think": True}, "plain", "x", None, False),
        (
            {
                "think": True,
                "template": "{{ range .Messages }}{{ if .Thinking }}<t>{{ .Thinking }}</t>{{ end }}{{ end }}",
            },
            "<think></think>",
            "x",
            ("<t>", "</t>"),
            False,
        ),
    ],
)
def test_what_is_looked_for(
    chat: dict[str, object], template: str, prompt: str, tags: object, inside: bool
) -> None:
    markup = Markup.of(Chat(request_id="c", messages=(), **chat), template, prompt)  # type: ignore[arg-type]
    assert (markup.thinking_tags, markup.starts_inside) == (tags, inside)
    assert markup.family is None


def test_tools_choose_the_family_of_the_template_in_use() -> None:
    tool = json.dumps({"function": {"name": "f"}}).encode()
    chat = Chat(request_id="c", messages=(), tools=(tool,))
    found = Markup.of(chat, "x[TOOL_CALLS]", "").family
    assert found is not None
    assert found.name == "mistral"
    go = "{{ range .ToolCalls }}CALL: {{ . }}{{ end }}"
    chat = Chat(request_id="c", messages=(), tools=(tool,), template=go)
    found = Markup.of(chat, "x[TOOL_CALLS]", "").family
    assert found is not None
    assert (found.name, found.opening) == ("generic", "CALL:")
