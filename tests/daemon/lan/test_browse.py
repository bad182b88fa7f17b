"""What others say is display text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.lan import browse
from daemon.lan.browse import display_addresses, display_properties, display_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Attic", "Attic"),
        ("\x1b[31mred\x07\r\n", "[31mred"),
        ("a\u202eb\u2066c\u200b", "abc"),
        ("a\u2028b\u00a0c d", "abc d"),
        ("x" * 500, "x" * 63),
    ],
)
def test_text_for_a_terminal(text: str, shown: str):
    assert display_text(text, 63) == shown


@given(st.text(), st.integers(1, 80))
def test_text_is_always_bounded_and_printable(text: str, limit: int):
    shown = display_text(text, limit)
    assert len(shown) <= limit and shown.isprintable()


@given(st.dictionaries(st.binary(max_size=300), st.none() | st.binary(max_size=300), max_size=40))
def test_properties_are_bounded_whatever_comes(properties: dict[bytes, bytes | None]):
    shown = display_properties(properties)
    assert len(shown) <= browse.MAX_PROPERTIES
    assert all(0 < len(key) <= browse.MAX_KEY_CHARACTERS for key in shown)
    assert all(len(value) <= browse.MAX_VALUE_CHARACTERS for value in shown.values())
    assert all(text.isprintable() for pair in shown.items() for text in pair)


def test_the_first_of_two_keys_wins_and_a_key_may_have_no_value():
    assert display_properties({b"ID": b"1", b"id": b"2", b"flag": None}) == {"id": "1", "flag": ""}


def test_addresses_are_real_and_of_other_machines():
    given = ["fd00::1", "127.0.0.1", "::", "224.0.0.1", "nonsense", "10.0.0.2", "10.0.0.1"]
    assert display_addresses(given) == ("10.0.0.1", "10.0.0.2", "fd00::1")
    assert (
        len(display_addresses(f"10.0.0.{number}" for number in range(99))) == browse.MAX_ADDRESSES
    )
