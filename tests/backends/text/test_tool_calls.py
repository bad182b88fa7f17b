from __future__ import annotations

import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.text.tool_calls import LeadingCalls, TaggedCalls, ToolCallParser, tool_call_parser

NAMES = ("get", "get_weather", "add")
HERMES = "…<tool_call>…"
MISTRAL = "…[TOOL_CALLS]…"
LLAMA = "…<|python_tag|>…"
WEATHER = '{"name": "get_weather", "arguments": {"z": "Köln", "a": 1}}'
ADD = '{"name": "add", "parameters": {"x": 1}}'


def run(template: str, *pieces: str, tag: str = "{") -> tuple[str, list[tuple[str, str]]]:
    return drive(tool_call_parser(template, NAMES, tag), *pieces)


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
    parser = LeadingCalls("{", ("get", "get_weather"))
    assert drive(parser, '{"name": "get_weather", "arguments": {}}')[1] == [("get_weather", "{}")]


def test_no_tools_no_calls() -> None:
    assert drive(TaggedCalls("<t>", "</t>", ()), "<t>{}</t>") == ("<t>{}</t>", [])


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


@pytest.mark.parametrize("part", ["{", '{"a":', "add", 'add{"a":', "[", "<tool_call>", "add{}"])
def test_hostile_text_stays_cheap(part: str) -> None:
    text = part * (200_000 // len(part))
    started = time.monotonic()
    for template in (HERMES, LLAMA, ""):
        run(template, "<tool_call>" + text)
        run(template, "{" + text)
    assert time.monotonic() - started < 10
