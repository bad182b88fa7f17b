from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.text.stops import StopMatcher

# Two letters make overlaps, repeats and near misses likely.
TEXT = st.text(alphabet="ab", max_size=30)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), max_size=4)


def expected(text: str, stops: list[str]) -> tuple[str, str]:
    """By definition: at the first character where any is complete, the longest that is."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, ""


def run(pieces: list[str], stops: list[str]) -> tuple[str, str]:
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(piece) for piece in pieces) + matcher.flush()
    return shown, matcher.stop_text


@given(st.lists(TEXT, max_size=8), STOPS)
def test_any_cutting_gives_the_same(pieces: list[str], stops: list[str]) -> None:
    assert run(pieces, stops) == expected("".join(pieces), stops)


@given(TEXT, STOPS)
def test_nothing_that_may_become_a_stop_string_is_shown(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = ""
    for index, character in enumerate(text):
        shown += matcher.push(character)
        if matcher.stop_text:
            break
        held = text[len(shown) : index + 1]
        assert held == "" or any(stop.startswith(held) for stop in stops)
        beginnings = (stop[:length] for stop in stops for length in range(1, len(stop)))
        assert len(held) == max(
            (len(b) for b in beginnings if text[: index + 1].endswith(b)), default=0
        )


def test_text_behind_a_stop_string_is_dropped() -> None:
    matcher = StopMatcher(["\n\n"])
    assert matcher.push("one\n") == "one"
    assert matcher.push("\ntwo") == ""
    assert matcher.push("three") == ""
    assert matcher.flush() == ""
    assert matcher.stop_text == "\n\n"


def test_a_near_miss_is_let_through() -> None:
    matcher = StopMatcher(["</s>"])
    assert matcher.push("x</") == "x"
    assert matcher.push("b>") == "</b>"


def test_what_is_complete_first_wins_and_of_equal_ends_the_longest() -> None:
    assert run(["abcd"], ["abcd", "bc"]) == ("a", "bc")
    assert run(["abc"], ["bc", "abc", "c"]) == ("", "abc")


def test_empty_stop_strings_mean_nothing() -> None:
    assert run(["abc"], ["", ""]) == ("abc", "")


def test_a_long_stop_string_costs_no_more_per_character() -> None:
    stop = "a" * 100_000 + "b"
    text, met = run(["a" * 1000] * 200, [stop])
    assert (len(text), met) == (200_000, "")
