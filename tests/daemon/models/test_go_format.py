"""Go's %v and %#v for the values that parameters can hold."""

import pytest

from daemon.models.go_format import go_syntax, go_text


@pytest.mark.parametrize(
    ("value", "plain", "syntax"),
    [
        ("a", "a", '"a"'),
        ("<|im_end|>", "<|im_end|>", '"<|im_end|>"'),
        ('q"\\', 'q"\\', '"q\\"\\\\"'),
        ("a\nb\t\x00\x7fé\u200b", "a\nb\t\x00\x7fé\u200b", '"a\\nb\\t\\x00\\x7fé\\u200b"'),
        (True, "true", "true"),
        (False, "false", "false"),
        (4096, "4096", "4096"),
        (1048576, "1048576", "1048576"),
        (0.7, "0.7", "0.7"),
        (1.0, "1", "1"),
        (1e-05, "1e-05", "1e-05"),
        (-1, "-1", "-1"),
    ],
)
def test_values(value: object, plain: str, syntax: str) -> None:
    assert (go_text(value), go_syntax(value)) == (plain, syntax)
