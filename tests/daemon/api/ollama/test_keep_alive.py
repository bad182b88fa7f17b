from typing import Any

import pytest
from msgspec import UNSET

from daemon.api.ollama.keep_alive import parse_keep_alive
from daemon.errors import Invalid


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, UNSET),
        (0, 0.0),
        (10, 10.0),
        (0.5, 0.5),
        (-1, None),
        (-0.1, None),
        (10**400, None),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("300ms", 0.3),
        ("0", 0.0),
        ("0s", 0.0),
        ("-1m", None),
        ("-1s", None),
    ],
)
def test_forms(value: Any, expected: Any) -> None:
    assert parse_keep_alive(value) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("10", 'time: missing unit in duration "10"'),
        ("", 'time: invalid duration ""'),
        ("abc", 'time: invalid duration "abc"'),
        (True, "Unsupported type: 'bool'"),
        ([], "Unsupported type: '[]interface {}'"),
        ({}, "Unsupported type: 'map[string]interface {}'"),
    ],
)
def test_refusals(value: Any, message: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_keep_alive(value)
    assert refused.value.message == message
