import pytest

from daemon.durations import MAX_NS, parse_duration_ns


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("+0", 0),
        ("5m", 300_000_000_000),
        ("1h30m", 5_400_000_000_000),
        ("-1.5s", -1_500_000_000),
        (".5s", 500_000_000),
        ("5.s", 5_000_000_000),
        ("1us", 1_000),
        ("1µs", 1_000),
        ("1ns", 1),
        ("9223372036854775807ns", MAX_NS),
    ],
)
def test_durations(text: str, expected: int) -> None:
    assert parse_duration_ns(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10", 'time: missing unit in duration "10"'),
        ("abc", 'time: invalid duration "abc"'),
        ("", 'time: invalid duration ""'),
        ("-", 'time: invalid duration "-"'),
        ("5d", 'time: unknown unit "d" in duration "5d"'),
        ("1 s", 'time: unknown unit " s" in duration "1 s"'),
        ("9223372036854775808ns", 'time: invalid duration "9223372036854775808ns"'),
        ("s", 'time: invalid duration "s"'),
    ],
)
def test_refusals_have_gos_texts(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="time:") as refused:
        parse_duration_ns(text)
    assert str(refused.value) == message


def test_a_long_text_is_refused_quickly() -> None:
    with pytest.raises(ValueError, match="invalid duration"):
        parse_duration_ns("1s" * 1_000_000)
