"""Published prompt formats, rendered the way requests render them, in both template languages."""

from __future__ import annotations

import datetime
from typing import Any

import msgspec
import pytest

from backends.text.prompt import ModelText
from backends.types import Chat, EngineError, Message, ToolCall
from tests.backends.text.small_tokenizers import byte_level
from tests.backends.text.template_families import (
    ANSWER,
    FAMILIES,
    FIRST,
    SECOND,
    SYSTEM,
)

CONVERSATION = (
    Message(role="system", content=SYSTEM),
    Message(role="user", content=FIRST),
    Message(role="assistant", content=ANSWER),
    Message(role="user", content=SECOND),
)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a place",
        "parameters": {
            "type": "object",
            "required": ["place"],
            "properties": {"place": {"type": "string", "description": "Where"}},
        },
    },
}
TOOL_TURNS = (
    Message(role="system", content=SYSTEM),
    Message(role="user", content="Rain in Oslo?"),
    Message(
        role="assistant", tool_calls=(ToolCall(name="weather", arguments=b'{"place":"Oslo"}'),)
    ),
    Message(role="tool", content="wet", tool_name="weather"),
)
TOOL_JSON = msgspec.json.encode(TOOL)
COMPACT = TOOL_JSON.decode()
SPACED = COMPACT.replace('":', '": ').replace(',"', ', "')


def prompt_of(source: str, *, form: str = "messages", **fields: Any) -> str:
    is_jinja = form == "jinja"
    model = ModelText(byte_level(), source if is_jinja else "")
    chat = Chat(request_id="c", template="" if is_jinja else source, **fields)
    return model.prompt_text(chat)


CASES = [
    pytest.param(form, source, family.expected, id=f"{family.name}-{form}")
    for family in FAMILIES
    for form, source in family.variants()
]


@pytest.mark.parametrize(("form", "source", "expected"), CASES)
def test_a_conversation_looks_as_the_family_says(form: str, source: str, expected: str) -> None:
    assert prompt_of(source, form=form, messages=CONVERSATION) == expected


QWEN_TOOLS_GO = """\
{{- if or .System .Tools }}<|im_start|>system
{{- if .System }}
{{ .System }}
{{- end }}
{{- if .Tools }}

# Tools

<tools>
{{- range .Tools }}
{"type": "function", "function": {{ .Function }}}
{{- end }}
</tools>
{{- end }}<|im_end|>
{{ end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 -}}
{{- if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>
{{ else if eq .Role "assistant" }}<|im_start|>assistant
{{ if .Content }}{{ .Content }}
{{- else if .ToolCalls }}<tool_call>
{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}
{{ end }}</tool_call>
{{- end }}{{ if not $last }}<|im_end|>
{{ end }}
{{- else if eq .Role "tool" }}<|im_start|>user
<tool_response>
{{ .Content }}
</tool_response><|im_end|>
{{ end }}
{{- if and (ne .Role "assistant") $last }}<|im_start|>assistant
{{ end }}
{{- end }}"""

QWEN_TOOLS_JINJA = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != "tool" %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def qwen_prompt(tool: str, arguments: str) -> str:
    return (
        f"<|im_start|>system\nBe kind.\n\n# Tools\n\n<tools>\n{tool}\n</tools><|im_end|>\n"
        "<|im_start|>user\nRain in Oslo?<|im_end|>\n<|im_start|>assistant\n<tool_call>\n"
        f'{{"name": "weather", "arguments": {arguments}}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nwet\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_qwen_tools_in_go() -> None:
    function = msgspec.json.encode(TOOL["function"]).decode()
    tool = f'{{"type": "function", "function": {function}}}'
    expected = qwen_prompt(tool, '{"place":"Oslo"}')
    assert prompt_of(QWEN_TOOLS_GO, messages=TOOL_TURNS, tools=(TOOL_JSON,)) == expected


def test_qwen_tools_in_jinja() -> None:
    expected = qwen_prompt(SPACED, '{"place": "Oslo"}')
    prompt = prompt_of(QWEN_TOOLS_JINJA, form="jinja", messages=TOOL_TURNS, tools=(TOOL_JSON,))
    assert prompt == expected


MISTRAL_TOOLS = """\
{{- range $index, $_ := .Messages }}
{{- if eq .Role "user" }}
{{- if and (le (len (slice $.Messages $index)) 3) $.Tools }}[AVAILABLE_TOOLS] {{ $.Tools }}[/AVAILABLE_TOOLS]
{{- end }}[INST] {{ .Content }}[/INST]
{{- else if eq .Role "assistant" }}
{{- if .ToolCalls }}[TOOL_CALLS] [
{{- range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ json .Function.Arguments }}}
{{- end }}]</s>{{ else }} {{ .Content }}</s>{{ end }}
{{- else if eq .Role "tool" }}[TOOL_RESULTS] {"content": {{ json .Content }}}[/TOOL_RESULTS]
{{- end }}
{{- end }}"""


def test_mistral_tools() -> None:
    prompt = prompt_of(MISTRAL_TOOLS, messages=TOOL_TURNS[1:], tools=(TOOL_JSON,))
    assert prompt == (
        f"[AVAILABLE_TOOLS] [{COMPACT}][/AVAILABLE_TOOLS][INST] Rain in Oslo?[/INST]"
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"place":"Oslo"}}]</s>'
        '[TOOL_RESULTS] {"content": "wet"}[/TOOL_RESULTS]'
    )


LLAMA_3_1 = """\
<|start_header_id|>system<|end_header_id|>

Cutting Knowledge Date: December 2023
Today: {{ currentDate }}
{{ if .System }}
{{ .System }}{{ end }}<|eot_id|>
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}<|start_header_id|>user<|end_header_id|>

{{ if and $.Tools (le $i 1) }}Functions:
{{ range $.Tools }}{{- . }}
{{ end }}{{ end }}{{ .Content }}<|eot_id|>{{ if $last }}<|start_header_id|>assistant<|end_header_id|>

{{ end }}
{{- else if eq .Role "assistant" }}<|start_header_id|>assistant<|end_header_id|>
{{- if .ToolCalls }}
{{ range .ToolCalls }}
{"name": "{{ .Function.Name }}", "parameters": {{ .Function.Arguments }}}{{ end }}
{{- else }}

{{ .Content }}
{{- end }}{{ if not $last }}<|eot_id|>{{ end }}
{{- else if eq .Role "tool" }}<|start_header_id|>ipython<|end_header_id|>

{{ .Content }}<|eot_id|>{{ if $last }}<|start_header_id|>assistant<|end_header_id|>

{{ end }}
{{- end }}
{{- end }}"""


def test_llama_tools_with_the_day() -> None:
    today = datetime.datetime.now().astimezone().date().isoformat()
    assert prompt_of(LLAMA_3_1, messages=TOOL_TURNS, tools=(TOOL_JSON,)) == (
        "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        f"Today: {today}\n\nBe kind.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        f"Functions:\n{COMPACT}\nRain in Oslo?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        '{"name": "weather", "parameters": {"place":"Oslo"}}<|eot_id|>'
        "<|start_header_id|>ipython<|end_header_id|>\n\nwet<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


QWEN3_THINKING = """\
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}<|im_start|>user
{{ .Content }}
{{- if and $.IsThinkSet $last }} {{ if $.Think }}/think{{ else }}/no_think{{ end }}{{ end }}<|im_end|>
{{ else if eq .Role "assistant" }}<|im_start|>assistant
{{ if .Thinking }}<think>{{ .Thinking }}</think>
{{ end }}{{ .Content }}<|im_end|>
{{ end }}
{{- if $last }}<|im_start|>assistant
{{ if and $.IsThinkSet (not $.Think) }}<think>

</think>

{{ end }}{{ end }}
{{- end }}"""


@pytest.mark.parametrize(
    ("think", "mark", "start"),
    [(None, "", ""), (True, " /think", ""), (False, " /no_think", "<think>\n\n</think>\n\n")],
)
def test_thinking_variables(think: bool | None, mark: str, start: str) -> None:
    messages = (
        Message(role="user", content="Hi"),
        Message(role="assistant", content="Hello!", thinking="hm"),
        Message(role="user", content="Why?"),
    )
    assert prompt_of(QWEN3_THINKING, messages=messages, think=think) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>hm</think>\nHello!"
        f"<|im_end|>\n<|im_start|>user\nWhy?{mark}<|im_end|>\n<|im_start|>assistant\n{start}"
    )


def test_a_level_of_thinking_reaches_both_languages() -> None:
    turn = (Message(role="user", content="u"),)
    go = "{{ .ThinkLevel }} {{ .Think }} {{ .IsThinkSet }}{{ .Messages | len }}"
    assert prompt_of(go, messages=turn, think="high") == "high true true1"
    jinja = "{{ reasoning_effort }} {{ enable_thinking }}"
    assert prompt_of(jinja, form="jinja", messages=turn, think="low") == "low True"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "{{ if .Suffix }}<PRE> {{ .Prompt }} <SUF>{{ .Suffix }} <MID>{{ else }}{{ .Prompt }}"
            "{{ end }}",
            "<PRE> def f( <SUF>return 1 <MID>",
        ),
        (
            "{{- if .Suffix }}<|fim_prefix|>{{ .Prompt }}<|fim_suffix|>{{ .Suffix }}<|fim_middle|>"
            "{{ else }}{{ range .Messages }}{{ .Content }}{{ end }}{{ end }}",
            "<|fim_prefix|>def f(<|fim_suffix|>return 1<|fim_middle|>",
        ),
    ],
)
def test_filling_in_between(source: str, expected: str) -> None:
    turn = (Message(role="user", content="def f("),)
    assert prompt_of(source, messages=turn, suffix="return 1") == expected


def test_a_suffix_without_a_template_is_refused() -> None:
    with pytest.raises(EngineError, match="suffix") as refusal:
        prompt_of("", form="jinja", messages=CONVERSATION, suffix="x")
    assert refusal.value.code == "unsupported"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("a\n{{ if }}", "template: :2: missing value for if"),
        ("{{ range $a := .Messages }}{{ $a.Nope.Deep }}{{ end }}", "template: :1:"),
        ("{{ define `x` }}{{ template `x` }}{{ end }}{{ template `x` }}", "too deeply"),
        ("{{ range 90000 }}{{ range 90000 }}{{ end }}{{ end }}", "steps|longer than"),
    ],
)
def test_a_bad_template_names_its_line_and_costs_little(source: str, reason: str) -> None:
    with pytest.raises(EngineError, match=reason) as refusal:
        prompt_of(source, messages=CONVERSATION)
    assert refusal.value.code == "template"


def test_a_tool_that_is_no_object_is_invalid() -> None:
    for form, source in (("messages", "{{ .Tools }}{{ .Messages }}"), ("jinja", "{{ tools }}")):
        with pytest.raises(EngineError) as refusal:
            prompt_of(source, form=form, messages=CONVERSATION, tools=(b"[1]",))
        assert refusal.value.code == "invalid"
