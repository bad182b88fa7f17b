from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.text.harmony import HarmonyParser
from backends.text.tools import Tools

TOOLS = Tools({"add": {}, "get.it": {}})
PROMPT = "<|start|>user<|message|>hi<|end|><|start|>assistant"
THOUGHT = "<|channel|>analysis<|message|>hm < so<|end|>"
AGAIN = "<|start|>assistant"
FINAL = "<|channel|>final<|message|>Hello."
CALL = "<|channel|>commentary to=functions.add <|constrain|>json<|message|>"


def parse(*pieces: str, prompt: str = PROMPT, tools: Tools = TOOLS):
    parser = HarmonyParser(prompt, tools)
    parts = [parser.push(piece) for piece in pieces] + [parser.flush()]
    calls = [(c.name, c.arguments.decode(), c.index) for part in parts for c in part.calls]
    return "".join(p.thinking for p in parts), "".join(p.text for p in parts), calls


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (THOUGHT + AGAIN + FINAL, ("hm < so", "Hello.", [])),
        (FINAL, ("", "Hello.", [])),
        (FINAL + "<|return|>", ("", "Hello.", [])),
        (THOUGHT + AGAIN + CALL + '{"x": 1}', ("hm < so", "", [("add", '{"x":1}', 0)])),
        (
            CALL + '{"x": 1}<|call|>' + AGAIN + CALL + '{"x": 2}<|call|>',
            ("", "", [("add", '{"x":1}', 0), ("add", '{"x":2}', 1)]),
        ),
        (
            " to=functions.get.it<|channel|>commentary json<|message|>{}",
            ("", "", [("get.it", "{}", 0)]),
        ),
        (CALL + "{oops", ("", "{oops", [])),
        (CALL + "[1]<|call|>", ("", "[1]", [])),
        (CALL.replace("add", "rm") + "{}", ("", "{}", [])),
        ("<|channel|>commentary<|message|>First.<|end|>" + AGAIN + FINAL, ("", "First.Hello.", [])),
        ("Plain words", ("", "Plain words", [])),
        ("<|channel|>analysis<|message|>never closed", ("never closed", "", [])),
        ("<|cha", ("", "<|cha", [])),
        ("", ("", "", [])),
    ],
)
def test_channels(text: str, expected: tuple[str, str, list[object]]) -> None:
    assert parse(text) == expected
    assert parse(*text) == expected


def test_without_tools_a_call_is_text() -> None:
    assert parse(CALL + "{}", tools=Tools()) == ("", "{}", [])


def test_inside_a_message_from_the_start() -> None:
    assert parse("hm<|end|>" + AGAIN + FINAL, prompt=PROMPT + "<|channel|>analysis<|message|>") == (
        "hm", "Hello.", [],
    )  # fmt: skip


PIECES = [THOUGHT, AGAIN, FINAL, CALL, "{}", "<|end|>", "<|call|>", "<|channel|>", "<|message|>",
          "<|", "assistant", "x", " ", "to=functions.add", "final", "y" * 600]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), st.data())
def test_any_cutting_gives_the_same(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    cut = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(*cut) == parse(text) == parse(*text)
