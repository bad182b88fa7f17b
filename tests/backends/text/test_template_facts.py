from __future__ import annotations

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.text.template_facts import TemplateFacts, go_facts, jinja_facts, prefers_jinja

GO_TOOLS = '{{ range .Messages }}{{ if eq .Role "tool" }}{{ .Content }}{{ end }}{{ .ToolCalls }}{{ end }}{{ .Tools }}'
GO_THINKING = (
    "{{ range .Messages }}{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}"
    "{{ end }}"
)
JINJA_TOOLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ m.content }}{% elif m.tool_calls %}{{ m.tool_calls }}{% endif %}"
    "{% endfor %}"
)


def test_go_variables_are_lower_cased_and_complete() -> None:
    facts = go_facts(
        "{{ if .System }}{{ .System }}{{ end }}{{ $x := .Prompt }}{{ $.Suffix }}{{ $x }}"
    )
    assert {"system", "prompt", "suffix", "x"} <= facts.variables
    assert facts.capabilities == {"insert"}


def test_go_capabilities() -> None:
    assert go_facts(GO_TOOLS).capabilities == {"tools"}
    assert go_facts(GO_TOOLS).has_tool_round_trip
    assert go_facts(GO_THINKING).capabilities == {"thinking"}
    assert go_facts(GO_THINKING).thinking_tags == ("<think>", "</think>")
    assert go_facts("{{ .Prompt }}").capabilities == frozenset()


def test_go_errors_have_a_line() -> None:
    facts = go_facts("a\n{{ if .System }}\n")
    assert facts.error
    assert facts.error_line >= 2
    assert facts.capabilities == frozenset()


@pytest.mark.parametrize(
    ("source", "capabilities"),
    [
        ("{{ messages }}", set()),
        (JINJA_TOOLS, {"tools"}),
        ("{{ message.tool_call_id }}", {"tools"}),
        ("<think>{{ x }}</think>", {"thinking"}),
        ("{{ content.split('</think>')[-1] }}", {"thinking"}),
        ('{{ m.content.split("</think>")[-1] }}', {"thinking"}),
        ("{{ content.split('</think>')[-1] }}{{ m.reasoning_content }}", set()),
        ("{{ content.split('</think>')[-1] }}<SPECIAL_12>", set()),
        ("<think>{{ m.reasoning_content }}</think>", {"thinking"}),
        ("{{ suffix }}", set()),
    ],
)
def test_jinja_capabilities(source: str, capabilities: set[str]) -> None:
    assert jinja_facts(source).capabilities == capabilities


def test_jinja_variables() -> None:
    facts = jinja_facts(
        "text {{ messages[0].content ~ 'a name in a string' }}{# comment #}"
        "{% raw %}{{ hidden }}{% endraw %}{% if not Tools %}{% endif %}"
    )
    assert {"messages", "tools"} <= facts.variables
    assert not {"text", "name", "comment", "hidden", "content"} & facts.variables
    assert facts.error == ""


@pytest.mark.parametrize(
    ("source", "line", "word"),
    [
        ("a\n{{ x", 2, "tag"),
        ("{% if x", 1, "tag"),
        ("\n\n{# x", 3, "comment"),
        ("{% raw %} x", 1, "raw"),
        ("{% if x %}\n{% for y in z %}{% endif %}", 2, "endif"),
        ("\n{% for y in z %}\n\n", 2, "for"),
        ("{% endfor %}", 1, "endfor"),
        ("{% set x %}a", 1, "set"),
        ("{{ 'a }}", 1, "tag"),
    ],
)
def test_jinja_errors_have_a_line(source: str, line: int, word: str) -> None:
    facts = jinja_facts(source)
    assert facts.error_line == line
    assert word in facts.error


@pytest.mark.parametrize(
    "source",
    [
        "{{ '}}' }}{{ \"%}\" }}{{ {'a': {'b': 1}} }}",
        "{%- set x = 1 -%}{% set y %}b{% endset %}{% macro m() %}{% endmacro %}",
        "{% raw %}{{ {% if %}{% endraw %}{# {{ #}}}",
        "{% for x in y %}{% if x %}{% elif z %}{% else %}{% endif %}{% endfor %}",
        "{% generation %}x{% endgeneration %}",
        "{{ 'it\\'s' }}",
        "",
    ],
)
def test_sound_jinja_has_no_error(source: str) -> None:
    assert jinja_facts(source).error == ""


@pytest.mark.parametrize(
    "part",
    ["{%", "{{", "{#", '{{ "', "'", "{%- ", "{{ (", "{% raw %}", "{{ }", "\\'", "{{ '\\'"],
)
def test_the_cost_is_linear(part: str) -> None:
    started = time.monotonic()
    jinja_facts(part * (900_000 // len(part)))
    assert time.monotonic() - started < 5


@given(st.text(alphabet="{}%#'\"\\ -ifendorset\n", max_size=80))
def test_no_text_is_too_strange(source: str) -> None:
    facts = jinja_facts(source)
    assert bool(facts.error) == bool(facts.error_line)
    go_facts(source)


def test_an_over_long_template_is_an_error() -> None:
    assert jinja_facts("x" * (1 << 20) + "x").error
    assert go_facts("x" * (1 << 20) + "x").error


@pytest.mark.parametrize(
    ("go", "jinja", "expected"),
    [
        ("{{ .Prompt }}", JINJA_TOOLS, True),
        (GO_TOOLS, JINJA_TOOLS, False),
        (GO_TOOLS, "<think></think>{{ tools }}", False),
        (GO_TOOLS, "<think></think>" + JINJA_TOOLS, True),
        ("{{ .Tools }}{{ .Messages }}", JINJA_TOOLS, True),
        ("{{ .Tools }}{{ .Messages }}", "{{ tools }}", False),
        (GO_THINKING, JINJA_TOOLS, False),
        ("{{ .Prompt }}", "{{ messages }}", False),
        ("{{ .Prompt }}", JINJA_TOOLS + "{% if %", False),
    ],
)
def test_which_of_two_templates(go: str, jinja: str, expected: bool) -> None:
    assert prefers_jinja(go_facts(go), jinja_facts(jinja)) is expected


def test_the_daemon_may_import_it() -> None:
    code = (
        "import sys, backends.text.template_facts\n"
        "print([m for m in ('jinja2', 'numpy', 'tokenizers') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_facts_are_values() -> None:
    assert jinja_facts("{{ x }}") == jinja_facts("{{ x }}")
    assert TemplateFacts("go") != TemplateFacts("jinja")
