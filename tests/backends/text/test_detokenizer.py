from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.text.detokenizer import Detokenizer


@given(st.lists(st.binary(max_size=5)))
def test_any_cutting_gives_the_whole_texts_characters(pieces: list[bytes]) -> None:
    detokenizer = Detokenizer()
    text = "".join(detokenizer.push(piece) for piece in pieces) + detokenizer.flush()
    assert text == b"".join(pieces).decode("utf-8", "replace")


@given(st.text())
def test_never_half_a_character(text: str) -> None:
    detokenizer = Detokenizer()
    shown = ""
    for value in text.encode():
        shown += detokenizer.push(bytes([value]))
        assert text.startswith(shown)
    assert shown == text
    assert detokenizer.flush() == ""


def test_an_unfinished_character_becomes_a_replacement_at_the_end() -> None:
    detokenizer = Detokenizer()
    assert detokenizer.push(b"a\xe2\x82") == "a"
    assert detokenizer.flush() == "\ufffd"
