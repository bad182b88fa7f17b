"""Formats, tools and thoughts through a real worker process on scripted answers."""

from __future__ import annotations

import json
import pathlib

import pytest

from backends.scripted.script import Rule, Script
from backends.types import Cancel, Chat, Delta, Failed, FromWorker, Limits, Loaded, ToolCall
from tests.backends.worker.worker_client import scripted_worker, text_of, tiny_worker, user

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FORMAT = json.dumps(SCHEMA).encode()
TOOL = json.dumps({"type": "function", "function": {"name": "add", "parameters": {}}}).encode()
HERMES = "{{ messages[0].content }}{# <tool_call> <think> </think> #}"
WORDY = Rule(prompt="wordy", pieces=('Sure! {"a"', ": 12", "} Bye."))
THOUGHTFUL = Rule(prompt="thoughtful", pieces=("<think>{}", " hm</thi", 'nk>\n\n{"a": 1}'))
CALLING = Rule(
    prompt="calling",
    pieces=("<tool_", 'call>{"name": "add", "argu', 'ments": {"x": 1}}</tool_call>'),
)
SCRIPT = Script(rules=(WORDY, THOUGHTFUL, CALLING), otherwise=Rule(pieces=("nothing of use",)))


def answer(messages: list[FromWorker]) -> tuple[str, str, tuple[ToolCall, ...], str | None]:
    deltas = [message for message in messages if isinstance(message, Delta)]
    thinking = "".join(delta.thinking for delta in deltas)
    calls = tuple(call for delta in deltas for call in delta.tool_calls)
    return thinking, text_of(messages), calls, deltas[-1].finish


def ask(folder: pathlib.Path, text: str, **options: object) -> list[FromWorker]:
    with scripted_worker(folder, SCRIPT, chat_template=HERMES) as worker:
        worker.chat("a", text, **options)
        return worker.read_until_closed("a")["a"]


def test_a_format_is_kept(tmp_path: pathlib.Path) -> None:
    assert answer(ask(tmp_path, "wordy", format=FORMAT)) == ("", '{"a": 12}', (), "stop")


def test_a_document_that_is_not_whole_ends_with_length(tmp_path: pathlib.Path) -> None:
    assert answer(ask(tmp_path, "else", format=FORMAT))[3] == "length"
    with scripted_worker(tmp_path, SCRIPT, chat_template=HERMES) as worker:
        worker.chat("a", "wordy", format=FORMAT, limits=Limits(max_tokens=4))
        cut = worker.read_until_closed("a")["a"]
        worker.chat("b", "wordy", format=FORMAT, stop=(": 1",))
        stopped = worker.read_until_closed("b")["b"]
    assert answer(cut) == ("", '{"a"', (), "length")
    assert answer(stopped) == ("", '{"a"', (), "length")


def test_thoughts_are_free_and_the_document_follows(tmp_path: pathlib.Path) -> None:
    messages = ask(tmp_path, "thoughtful", format=FORMAT, think=True)
    assert answer(messages) == ("{} hm", '{"a": 1}', (), "stop")


def test_without_thinking_the_document_comes_at_once(tmp_path: pathlib.Path) -> None:
    """Nothing of the tags is let through, and the braces of the thoughts open the document."""
    thinking, text, _, finish = answer(ask(tmp_path, "thoughtful", format=FORMAT, think=False))
    assert (thinking, json.loads(text), finish) == ("", {"a": 1}, "stop")


def test_tools_and_a_format_together(tmp_path: pathlib.Path) -> None:
    _, text, (call,), finish = answer(ask(tmp_path, "calling", tools=(TOOL,), format=FORMAT))
    assert (text, call.name, call.arguments, finish) == ("", "add", b'{"x":1}', "stop")
    assert answer(ask(tmp_path, "wordy", tools=(TOOL,), format=FORMAT))[1] == '{"a": 12}'


def test_calls_only_for_requests_with_tools(tmp_path: pathlib.Path) -> None:
    _, text, (call,), _ = answer(ask(tmp_path, "calling", tools=(TOOL,)))
    assert (text, call.index, call.id[:5]) == ("", 0, "call_")
    assert answer(ask(tmp_path, "calling"))[1:3] == ("".join(CALLING.pieces), ())


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        (b'{"not": {}}', '"not"'),
        (b'"xml"', '"json" or a JSON Schema'),
        (b"{", "no JSON"),
        (b"[1]", '"json" or a JSON Schema'),
    ],
)
def test_a_format_that_cannot_be_honoured_is_refused(
    tmp_path: pathlib.Path, wanted: bytes, named: str
) -> None:
    (failure,) = ask(tmp_path, "wordy", format=wanted)
    assert isinstance(failure, Failed)
    assert failure.code == "invalid"
    assert named in failure.message


def test_tools_that_are_none_are_refused(tmp_path: pathlib.Path) -> None:
    (failure,) = ask(tmp_path, "wordy", tools=(b"[]",))
    assert isinstance(failure, Failed)
    assert failure.code == "invalid"


def test_cancelled_while_the_grammar_is_made(tmp_path: pathlib.Path) -> None:
    """The first format of a worker builds the vocabulary: the cancel arrives before the grammar."""
    wide = {f"p{number}": {"type": "string"} for number in range(2000)}
    schema = json.dumps({"type": "object", "properties": wide}).encode()
    with scripted_worker(tmp_path, SCRIPT, chat_template=HERMES) as worker:
        worker.send(Chat(request_id="a", messages=user("wordy"), format=schema))
        worker.send(Cancel(request_id="a"))
        (failure,) = worker.read_until_closed("a")["a"]
        assert isinstance(failure, Failed)
        assert failure.code == "cancelled"
        worker.chat("b", "wordy", format=FORMAT)
        assert answer(worker.read_until_closed("b")["b"])[1] == '{"a": 12}'


def test_an_engine_without_grammars_refuses_by_name(tmp_path: pathlib.Path) -> None:
    with tiny_worker(tmp_path) as worker:
        assert isinstance(worker.load(tmp_path, "tiny"), Loaded)
        worker.chat("a", "x", format=FORMAT)
        failure = worker.read()
        worker.chat("b", "x", limits=Limits(max_tokens=1))
        assert worker.read_until_closed("b")
    assert isinstance(failure, Failed)
    assert (failure.code, "format" in failure.message) == ("unsupported", True)
