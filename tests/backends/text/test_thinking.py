from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.text.thinking import ThinkingSplitter, starts_inside


def split(*pieces: str, inside: bool = False) -> tuple[str, str]:
    splitter = ThinkingSplitter("<think>", "</think>", starts_inside=inside)
    parts = [splitter.push(piece) for piece in pieces] + [splitter.flush()]
    return "".join(p[0] for p in parts), "".join(p[1] for p in parts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a b</think>c", ("a b", "c")),
        (" \n<think>\n a </think>\n\n c ", ("a ", "c ")),
        ("  plain <think>x</think>", ("", "  plain <think>x</think>")),
        ("<think>never closed", ("never closed", "")),
        ("<think>a</think>b<think>c</think>", ("a", "b<think>c</think>")),
        ("<think></think>x", ("", "x")),
        ("<thi", ("", "<thi")),
        ("<think>a</thi", ("a</thi", "")),
        ("", ("", "")),
        (" \n", ("", " \n")),
    ],
)
def test_the_rules(text: str, expected: tuple[str, str]) -> None:
    assert split(text) == expected


def test_inside_from_the_start() -> None:
    assert split(" a</think> b", inside=True) == ("a", "b")
    assert starts_inside("…assistant\n<think>\n", "<think>")
    assert not starts_inside("<think>x", "<think>")


MARKUP = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "</", "thi", "nk>", " ", "\n", "a", "b"]),
    max_size=8,
).map("".join)


@given(MARKUP, st.booleans())
def test_any_cutting_gives_the_same(text: str, inside: bool) -> None:
    assert split(*text, inside=inside) == split(text, inside=inside)


@given(MARKUP)
def test_nothing_but_tags_and_space_is_lost(text: str) -> None:
    thinking, answer = split(text)

    def letters(shown: str) -> str:
        return "".join(shown.replace("<think>", "").replace("</think>", "").split())

    assert letters(thinking) + letters(answer) == letters(text)


def test_it_says_when_the_answer_begins() -> None:
    splitter = ThinkingSplitter("<think>", "</think>")
    splitter.push("<think>a")
    assert not splitter.is_answering
    splitter.push("</think>")
    assert splitter.is_answering
