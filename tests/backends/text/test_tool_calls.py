from __future__ import annotations

import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.text.tool_calls import LeadingCalls, TaggedCalls, ToolCallParser
from backends.text.tool_families import FAMILIES, tool_family
from backends.text.tools import Tools
from backends.types import EngineError


def tool(name: str, **types: str) -> bytes:
    properties = {key: {"type": kind} for key, kind in types.items()}
    parameters = {"type": "object", "properties": properties}
    return json.dumps(
        {"type": "function", "function": {"name": name, "parameters": parameters}}
    ).encode()


TOOLS = Tools.read(
    [tool("get"), tool("get_weather", z="string", a="integer"), tool("add", x="integer")]
)
HERMES = "…<tool_call>…"
MISTRAL = "…[TOOL_CALLS]…"
LLAMA = "…<|python_tag|>…"
DEEPSEEK = "…<｜tool▁calls▁begin｜>…"
CODER = "<tool_call><function=…"
GLM = "<tool_call><arg_key>"
PYTHONIC = "Write [func_name1(a=b)]"
GRANITE = "<|tool_call|>"
GEMMA = "```tool_code"
FUNCTION_GEMMA = "<start_function_call>"
LFM = "<|tool_call_start|>"
KIMI = "<|tool_calls_section_begin|>"
COHERE = "<|START_ACTION|>"
WEATHER = '{"name": "get_weather", "arguments": {"z": "Köln", "a": 1}}'
ADD = '{"name": "add", "parameters": {"x": 1}}'


def run(template: str, *pieces: str, tag: str = "{") -> tuple[str, list[tuple[str, str]]]:
    return drive(tool_family(template, tag).parser(TOOLS), *pieces)


def drive(parser: ToolCallParser, *pieces: str) -> tuple[str, list[tuple[str, str]]]:
    parts = [parser.push(piece) for piece in pieces] + [parser.flush()]
    calls = [call for _, found in parts for call in found]
    assert [call.index for call in calls] == list(range(len(calls)))
    assert all(re.fullmatch("call_[a-z0-9]{8}", call.id) for call in calls)
    assert len({call.id for call in calls}) == len(calls)
    text = "".join(shown for shown, _ in parts)
    return text, [(call.name, call.arguments.decode()) for call in calls]


WEATHER_CALL = ("get_weather", '{"z":"Köln","a":1}')
ADD_CALL = ("add", '{"x":1}')


@pytest.mark.parametrize(
    ("template", "text", "expected"),
    [
        (HERMES, f"<tool_call>\n{WEATHER}\n</tool_call>", ("", [WEATHER_CALL])),
        (
            HERMES,
            f"Sure.\n<tool_call>{WEATHER}</tool_call>\n<tool_call>{ADD}</tool_call>\n",
            ("Sure.\n", [WEATHER_CALL, ADD_CALL]),
        ),
        (HERMES, f"<tool_call>{WEATHER}", ("", [WEATHER_CALL])),
        (HERMES, f"<tool_call>{ADD}</tool_call> done", (" done", [ADD_CALL])),
        (HERMES, "<tool_call>{oops</tool_call>x", ("<tool_call>{oops</tool_call>x", [])),
        (HERMES, "a <tool_ca", ("a <tool_ca", [])),
        (
            HERMES,
            '<tool_call>{"name": "rm", "arguments": {"q": "add"}}</tool_call>',
            ('<tool_call>{"name": "rm", "arguments": {"q": "add"}}</tool_call>', []),
        ),
        (MISTRAL, f"[TOOL_CALLS][{WEATHER}, {ADD}]", ("", [WEATHER_CALL, ADD_CALL])),
        (MISTRAL, 'Hm [TOOL_CALLS]add[ARGS]{"x": 1}', ("Hm ", [ADD_CALL])),
        (
            MISTRAL,
            '[TOOL_CALLS]add[ARGS]{"x": 1}[TOOL_CALLS]get_weather[ARGS]{"z": "Köln", "a": 1}',
            ("", [ADD_CALL, WEATHER_CALL]),
        ),
        (MISTRAL, "[TOOL_CALLS][{]", ("[TOOL_CALLS][{]", [])),
        (LLAMA, WEATHER, ("", [WEATHER_CALL])),
        (LLAMA, f"<|python_tag|>{ADD}; {WEATHER}", ("", [ADD_CALL, WEATHER_CALL])),
        (LLAMA, "Just text {a}", ("Just text {a}", [])),
        (LLAMA, '{"no": "call"}', ('{"no": "call"}', [])),
        ("", f"{ADD}", ("", [ADD_CALL])),
        ("", f" \n{ADD} and more", ("and more", [ADD_CALL])),
        ("", f"Text {ADD}", (f"Text {ADD}", [])),
        ("", '{"add": {"x": 1}}', ("", [ADD_CALL])),
        ("", '{"calls": [{"name": "add", "arguments": "{\\"x\\": 1}"}]}', ("", [ADD_CALL])),
        ("", '{"function": {"name": "add", "arguments": {"x": 1}}}', ("", [ADD_CALL])),
        ("", '{"name": "get"}', ("", [("get", "{}")])),
        ("", '{"name": "add", "arguments": [1]}', ('{"name": "add", "arguments": [1]}', [])),
        ("", "", ("", [])),
        (
            "",
            '{"name": "add", "arguments": {"x": NaN}}',
            ('{"name": "add", "arguments": {"x": NaN}}', []),
        ),
        (
            "",
            '{"name": "add", "arguments": {"x": 1e999}}',
            ('{"name": "add", "arguments": {"x": 1e999}}', []),
        ),
        (
            DEEPSEEK,
            "Ok.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n"
            '{"x": 1}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>'
            '{"z": "Köln", "a": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
            ("Ok.", [ADD_CALL, WEATHER_CALL]),
        ),
        (
            KIMI,
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0"
            '<|tool_call_argument_begin|>{"x": 1}<|tool_call_end|><|tool_calls_section_end|>',
            ("", [ADD_CALL]),
        ),
        (
            CODER,
            "<tool_call>\n<function=get_weather>\n<parameter=z>\nKöln\n</parameter>\n"
            "<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
            ("", [WEATHER_CALL]),
        ),
        (
            CODER,
            "<tool_call><function=rm></function></tool_call>",
            ("<tool_call><function=rm></function></tool_call>", []),
        ),
        (CODER, "<tool_call><function=get></function></tool_call>", ("", [("get", "{}")])),
        (
            CODER,
            "<tool_call><function=add><parameter=x>1</tool_call>",
            ("<tool_call><function=add><parameter=x>1</tool_call>", []),
        ),
        (
            GLM,
            "<tool_call>get_weather\n<arg_key>z</arg_key>\n<arg_value>Köln</arg_value>\n"
            "<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>",
            ("", [WEATHER_CALL]),
        ),
        (PYTHONIC, "[add(x=1), get_weather(z='Köln', a=1)]", ("", [ADD_CALL, WEATHER_CALL])),
        (PYTHONIC, "<|python_start|>[add(x=1)]<|python_end|>", ("", [ADD_CALL])),
        (PYTHONIC, "[add(x=__import__('os'))]", ("[add(x=__import__('os'))]", [])),
        (PYTHONIC, "[1, 2]", ("[1, 2]", [])),
        (
            PYTHONIC,
            '[get(a=[1, -2.5, True, None], b={"c": "\\u00e9\\n"}, d=\'it\\\'s\')]',
            ("", [("get", '{"a":[1,-2.5,true,null],"b":{"c":"é\\n"},"d":"it\'s"}')]),
        ),
        (GRANITE, f"<|tool_call|>[{WEATHER}]", ("", [WEATHER_CALL])),
        (GRANITE, "<|tool_call|>[{]", ("<|tool_call|>[{]", [])),
        (GEMMA, "Sure:\n```tool_code\nadd(x=1)\n```", ("Sure:\n", [ADD_CALL])),
        (GEMMA, "```tool_code\nprint(1)\n```", ("```tool_code\nprint(1)\n```", [])),
        (
            FUNCTION_GEMMA,
            "<start_function_call>call:get_weather{z:<escape>Köln<escape>,a:1}<end_function_call>",
            ("", [WEATHER_CALL]),
        ),
        (
            "<|tool_call><tool_call|>",
            '<|tool_call>call:get_weather{z:<|"|>Köln<|"|>,a:1}<tool_call|>',
            ("", [WEATHER_CALL]),
        ),
        (LFM, "<|tool_call_start|>[add(x=1)]<|tool_call_end|>Done", ("Done", [ADD_CALL])),
        (
            COHERE,
            '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "add", "parameters": {"x": 1}}]'
            "<|END_ACTION|>",
            ("", [ADD_CALL]),
        ),
    ],
)
def test_each_family(template: str, text: str, expected: tuple[str, list[tuple[str, str]]]) -> None:
    assert run(template, text) == expected
    assert run(template, *text) == expected


def test_the_tag_of_a_go_template() -> None:
    assert run("", "Ok CALL: " + ADD, tag="CALL:") == ("Ok ", [ADD_CALL])
    assert run("", f"[{ADD}]", tag="[") == ("", [ADD_CALL])
    assert run("", ADD, tag="[") == (ADD, [])


def test_the_longest_name_wins() -> None:
    parser = LeadingCalls("{", TOOLS)
    assert drive(parser, '{"name": "get_weather", "arguments": {}}')[1] == [("get_weather", "{}")]


def test_no_tools_no_calls() -> None:
    assert drive(TaggedCalls("<t>", "</t>", Tools()), "<t>{}</t>") == ("<t>{}</t>", [])


def test_tools_that_are_no_objects_are_refused() -> None:
    with pytest.raises(EngineError, match="no JSON object"):
        Tools.read([b"[1]"])
    assert Tools.read([b"{}", b'{"function": {"name": 1}}', b'{"function": []}']).names == ()


TEMPLATES = {family.name: "".join(family.marks) for family in FAMILIES} | {"generic": ""}


def test_every_family_is_found_by_its_marks() -> None:
    assert {name: tool_family(marks).name for name, marks in TEMPLATES.items()} == {
        name: name for name in TEMPLATES
    }


BODIES = [
    WEATHER, ADD, "add", "add(x=1)", "call:add{x:1}", "[ARGS]", "<function=add>", "</function>",
    "<parameter=x>1</parameter>", "<arg_key>x</arg_key>", "<arg_value>1</arg_value>", "{", "}",
    "[", "]", " ", "\n", "<", "text", '"', ",",
]  # fmt: skip


@st.composite
def marked_texts(draw: st.DrawFn) -> tuple[str, str]:
    """(template, text with pieces of its family's mark-up)."""
    family = draw(st.sampled_from(FAMILIES))
    tags = [tag for tag in (family.opening, family.closing) if tag]
    pieces = draw(st.lists(st.sampled_from([*tags, *tags, *BODIES]), max_size=8))
    return "".join(family.marks), "".join(pieces)


@given(marked_texts(), st.data())
def test_any_cutting_gives_the_same_in_every_family(
    drawn: tuple[str, str], data: st.DataObject
) -> None:
    template, text = drawn
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    cut = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert run(template, *cut) == run(template, text)
    assert run(template, *text) == run(template, text)
    shown, calls = run(template, text)
    if not calls:
        assert shown == text


TAGS = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>"]
REST = [WEATHER, ADD, "add", "{", "}", "[", "]", " ", "\n", "<", "text", '"', ","]
PIECES = st.lists(st.sampled_from([*TAGS, *REST]), max_size=8)


@given(PIECES, st.sampled_from([HERMES, MISTRAL, LLAMA, ""]), st.data())
def test_any_cutting_gives_the_same(pieces: list[str], template: str, data: st.DataObject) -> None:
    text = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    cut = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert run(template, *cut) == run(template, text)
    assert run(template, *text) == run(template, text)


@given(st.text(alphabet='{}[]":,add \\', max_size=60), st.sampled_from([HERMES, LLAMA, ""]))
def test_text_without_calls_is_unchanged_and_calls_are_objects(text: str, template: str) -> None:
    shown, calls = run(template, text)
    if not calls:
        assert shown == text
    for _, arguments in calls:
        assert isinstance(json.loads(arguments), dict)


HOSTILE = [
    "{",
    '{"a":',
    "add",
    'add{"a":',
    "[",
    "add{}",
    "add(",
    "add(x=[",
    "<function=add>",
    "<arg_key>x</arg_key><arg_value>",
    " ",
    "<parameter=x>",
]


@pytest.mark.parametrize("part", HOSTILE)
def test_hostile_text_stays_cheap(part: str) -> None:
    text = part * (200_000 // len(part))
    started = time.monotonic()
    for template in TEMPLATES.values():
        family = tool_family(template)
        run(template, (family.opening or "{") + text + family.closing)
    assert time.monotonic() - started < 10
