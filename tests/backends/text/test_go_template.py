"""The Go template language and its dialect, by what each template must print."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.text.go_template import (
    GoTemplate,
    TemplateError,
    TemplateLimit,
    TemplateSyntaxError,
    Thinking,
)
from backends.text.go_template.evaluate import evaluate
from backends.text.go_template.parser import parse
from backends.types import Message, ToolCall

VALUES: dict[str, Any] = {
    "A": "a",
    "N": 3,
    "F": 2.5,
    "T": True,
    "L": ["x", "y", "z"],
    "M": {"b": 2, "a": 1},
    "E": "",
    "Q": '<"q">',
}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("plain", "plain"),
        ("{{ .A }}-{{ .N }}-{{ .F }}-{{ .T }}", "a-3-2.5-true"),
        ("{{ .Missing }}", "<no value>"),
        ("x {{- .A -}} y", "xay"),
        ("x {{ .A }} y", "x a y"),
        ("a{{/* note */}}b", "ab"),
        ("a \n{{- /* note */ -}}\n b", "ab"),
        ("{{ if .A }}1{{ else }}2{{ end }}", "1"),
        ("{{ if .E }}1{{ else if .A }}2{{ else }}3{{ end }}", "2"),
        ("{{ with .E }}1{{ else with .A }}{{ . }}{{ end }}", "a"),
        ("{{ range .L }}[{{ . }}]{{ end }}", "[x][y][z]"),
        ("{{ range $i, $v := .L }}{{ $i }}{{ $v }}{{ end }}", "0x1y2z"),
        ("{{ range $k, $v := .M }}{{ $k }}={{ $v }};{{ end }}", "a=1;b=2;"),
        ("{{ range .E2 }}1{{ else }}none{{ end }}", "none"),
        ("{{ range .N }}{{ . }}{{ end }}", "012"),
        ("{{ range .L }}{{ if eq . `y` }}{{ continue }}{{ end }}{{ . }}{{ end }}", "xz"),
        ("{{ range .L }}{{ if eq . `y` }}{{ break }}{{ end }}{{ . }}{{ end }}", "x"),
        ("{{ $x := 1 }}{{ range .L }}{{ $x = . }}{{ end }}{{ $x }}", "z"),
        ("{{ $x := 1 }}{{ if true }}{{ $x := 2 }}{{ $x }}{{ end }}{{ $x }}", "21"),
        ('{{ define "d" }}<{{ . }}>{{ end }}{{ template "d" .A }}', "<a>"),
        ('{{ block "b" .A }}({{ . }}){{ end }}', "(a)"),
        ("{{ range .L }}{{ $.A }}{{ end }}", "aaa"),
        ("{{ .A | printf `%s-%d` `p` | len }}", "15"),
        ('{{ printf "%05d|%-4s|%5.2f|%q|%v|%t|%x" 42 "ab" 3.14159 "q" .L true 255 }}',
         '00042|ab  | 3.14|"q"|[x y z]|true|ff'),
        ('{{ printf "%d" "x" }} {{ printf "%s" }}', "%!d(string=x) %!s(MISSING)"),
        ("{{ and .A .E }}|{{ or .E .A }}|{{ not .A }}", "|a|false"),
        ("{{ and .E (index .L 99) }}", ""),
        ("{{ eq .N 1 2 3 }} {{ ne .A `b` }} {{ lt 1 2 }} {{ ge 2 2 }}", "true true true true"),
        ("{{ len .L }} {{ len `é` }} {{ index .L 1 }} {{ index .M `b` }}", "3 2 y 2"),
        ("{{ slice .L 1 }} {{ slice `hello` 1 3 }}", "[y z] el"),
        ("{{ json .M }} {{ json .Q }}", '{"a":1,"b":2} "\\u003c\\"q\\"\\u003e"'),
        ("{{ html .Q }} {{ urlquery `a b&` }}", "&lt;&#34;q&#34;&gt; a+b%26"),
        ("{{ print 1 2 `x` 3 }}|{{ println `a` 1 }}", "1 2x3|a 1\n"),
        ("{{ (index .L 0) }}{{ (.M).a }}", "x1"),
        ("{{ `raw\\n` }}{{ \"esc\\t\\u00e9\" }}{{ 'a' }}", "raw\\nesc\té97"),
        ("{{ .M }} {{ 1e21 }} {{ 1000000.0 }}", "map[a:1 b:2] 1e+21 1000000"),
    ],
)  # fmt: skip
def test_language(source: str, expected: str) -> None:
    assert evaluate(parse(source), VALUES) == expected


@pytest.mark.parametrize(
    ("source", "line", "reason"),
    [
        ("{{ if .A }}", 1, "unexpected EOF"),
        ("a\n{{ end }}", 2, "unexpected {{end}}"),
        ("{{ nope .A }}", 1, 'function "nope" not defined'),
        ("\n\n{{ $x }}", 3, 'undefined variable "$x"'),
        ("{{ .A", 1, "unclosed action"),
        ('{{ "a }}', 1, "unterminated quoted string"),
        ("{{ break }}", 1, "outside {{range}}"),
        ("{{ }}", 1, "missing value for command"),
        ("{{ (.A }}", 1, "in parenthesized pipeline"),
        ("{{ .A ! }}", 1, "unexpected '!' in action"),
        ("{{ if .A }}" * 200, 1, "nested deeper"),
    ],
)
def test_syntax_errors_name_line_and_reason(source: str, line: int, reason: str) -> None:
    with pytest.raises(TemplateSyntaxError, match="template: ") as caught:
        parse(source)
    assert caught.value.line == line
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    "source",
    [
        "{{ .A.B }}",
        "{{ range .T }}{{ end }}",
        "{{ eq .A 1 }}",
        "{{ index .L 9 }}",
        "{{ call .A }}",
        '{{ template "gone" }}',
        "{{ .A 1 }}",
    ],
)
def test_errors_while_rendering(source: str) -> None:
    with pytest.raises(TemplateError):
        evaluate(parse(source), VALUES)


@pytest.mark.parametrize(
    "source",
    [
        "{{ range 1000000 }}{{ range 1000000 }}{{ end }}{{ end }}",
        '{{ define "r" }}{{ template "r" }}{{ end }}{{ template "r" }}',
        '{{ range 2000000 }}' + "x" * 1000 + "{{ end }}",
    ],
)  # fmt: skip
def test_work_is_bounded(source: str) -> None:
    with pytest.raises(TemplateLimit):
        evaluate(parse(source), {})


@given(st.text(alphabet='{}.-$|ABif end range()"`/*:= \n1'))
def test_any_text_parses_or_is_refused(source: str) -> None:
    try:
        evaluate(parse(source), VALUES)
    except TemplateError as error:
        assert error.reason


TALK = [
    Message(role="system", content="Be kind."),
    Message(role="user", content="Hi"),
    Message(role="assistant", content="Hello!"),
    Message(role="user", content="Why?"),
]
CHATML = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
CHATML_LEGACY = """{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ if .Prompt }}<|im_start|>user
{{ .Prompt }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ .Response }}<|im_end|>
"""
CHATML_TEXT = """<|im_start|>system
Be kind.<|im_end|>
<|im_start|>user
Hi<|im_end|>
<|im_start|>assistant
Hello!<|im_end|>
<|im_start|>user
Why?<|im_end|>
<|im_start|>assistant
"""
LLAMA3 = """{{ if .System }}<|start_header_id|>system<|end_header_id|>

{{ .System }}<|eot_id|>{{ end }}{{ if .Prompt }}<|start_header_id|>user<|end_header_id|>

{{ .Prompt }}<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>

{{ .Response }}<|eot_id|>"""
LLAMA3_TEXT = (
    "<|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
MISTRAL = "[INST] {{ if .System }}{{ .System }} {{ end }}{{ .Prompt }} [/INST] {{ .Response }}"
GEMMA = """<start_of_turn>user
{{ if .System }}{{ .System }} {{ end }}{{ .Prompt }}<end_of_turn>
<start_of_turn>model
{{ .Response }}<end_of_turn>
"""


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CHATML, CHATML_TEXT),
        (CHATML_LEGACY, CHATML_TEXT),
        (LLAMA3, LLAMA3_TEXT),
        (MISTRAL, "[INST] Be kind. Hi [/INST] Hello![INST] Why? [/INST] "),
        (
            GEMMA,
            "<start_of_turn>user\nBe kind. Hi<end_of_turn>\n<start_of_turn>model\nHello!"
            "<end_of_turn>\n<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n",
        ),
        ("{{ .Prompt }}", "HiHello!Why?"),
    ],
)
def test_families(source: str, expected: str) -> None:
    assert GoTemplate(source).render(TALK) == expected


def test_a_pending_answer_is_continued() -> None:
    talk = [*TALK, Message(role="assistant", content="Because")]
    assert GoTemplate(LLAMA3).render(talk) == LLAMA3_TEXT + "Because"


def test_equal_neighbours_are_collated_but_not_tool_results() -> None:
    talk = [
        Message(role="user", content="a"),
        Message(role="user", content="b"),
        Message(role="tool", content="1"),
        Message(role="tool", content="2"),
    ]
    source = "{{ range .Messages }}<{{ .Role }}:{{ .Content }}>{{ end }}"
    assert GoTemplate(source).render(talk) == "<user:a\n\nb><tool:1><tool:2>"


TOOL = (
    b'{"type":"function","function":{"name":"now","description":"the time","parameters":'
    b'{"type":"object","required":["zone"],"properties":{"zone":{"type":["string"],"x-y":1,'
    b'"description":"a zone"},"at":{"type":["string","null"]}}}}}'
)


def test_tools_print_as_json_without_foreign_keywords() -> None:
    source = "{{ range .Tools }}{{ . }}{{ end }}|{{ .Messages }}"
    text = GoTemplate("{{ range .Tools }}{{ . }}{{ end }}{{ range .Messages }}{{ end }}").render(
        TALK, tools=[TOOL]
    )
    assert text == (
        '{"type":"function","function":{"name":"now","description":"the time","parameters":'
        '{"type":"object","required":["zone"],"properties":{"zone":{"type":"string",'
        '"description":"a zone"},"at":{"type":["string","null"]}}}}}'
    )
    assert GoTemplate(source).render(TALK).startswith("|[")


def test_properties_can_be_ranged_and_typed() -> None:
    source = (
        "{{ range .Tools }}{{ range $n, $p := .Function.Parameters.Properties }}"
        "{{ $n }}: {{ toTypeScriptType $p }}; {{ end }}{{ end }}{{ range .Messages }}{{ end }}"
    )
    assert GoTemplate(source).render(TALK, tools=[TOOL]) == "at: string | null; zone: string; "


def test_tool_calls_print_their_arguments_in_order() -> None:
    call = ToolCall(name="now", arguments=b'{"zone":"CET","at":1}')
    talk = [Message(role="assistant", tool_calls=(call,))]
    source = (
        "{{ range .Messages }}{{ range .ToolCalls }}<tool_call>\n"
        '{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}{{ end }}{{ end }}'
    )
    template = GoTemplate(source)
    assert template.render(talk) == (
        '<tool_call>\n{"name": "now", "arguments": {"zone":"CET","at":1}}'
    )
    assert template.tool_call_tag == "<tool_call>"


def test_thinking_tags_and_variables() -> None:
    source = (
        "{{ range .Messages }}{{ if .Thinking }}<think>\n{{ .Thinking }}\n</think>{{ end }}"
        "{{ .Content }}{{ end }}{{ if and $.IsThinkSet (not $.Think) }}/no_think{{ end }}{{ .ThinkLevel }}"
    )
    template = GoTemplate(source)
    assert template.thinking_tags == ("<think>", "</think>")
    talk = [Message(role="user", content="x")]
    assert template.render(talk, thinking=Thinking(is_set=True)) == "x/no_think"
    assert template.render(talk, thinking=Thinking(is_set=True, is_on=True)) == "xmedium"


def test_fill_in_the_middle() -> None:
    template = GoTemplate("{{ if .Suffix }}<PRE> {{ .Prompt }} <SUF>{{ .Suffix }} <MID>{{ end }}")
    assert "suffix" in template.variables
    assert template.render_suffix("def", "return") == "<PRE> def <SUF>return <MID>"
