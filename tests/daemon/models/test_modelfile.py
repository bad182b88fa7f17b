"""The grammar's cases, one line each, and the round trip through text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.models.modelfile import Command, ModelfileError, decode_text, parse, render


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FROM foo", [Command("from", "foo")]),
        ("from foo\nSYSTEM hi there ", [Command("from", "foo"), Command("system", "hi there")]),
        ('FROM x\nSYSTEM "two\nlines"', [Command("from", "x"), Command("system", "two\nlines")]),
        (
            'FROM x\nSYSTEM """\n say "hi" \n"""',
            [Command("from", "x"), Command("system", '\n say "hi" \n')],
        ),
        ("# c\nFROM x # y", [Command("from", "x # y")]),
        (
            "FROM x\r\nPARAMETER stop <|end|>\r\n",
            [Command("from", "x"), Command("parameter", "<|end|>", "stop")],
        ),
        (
            "FROM x\nPARAMETER  temperature 1",
            [Command("from", "x"), Command("parameter", "temperature 1", "")],
        ),
        ("FROM x\nMESSAGE user hello", [Command("from", "x"), Command("message", "hello", "user")]),
        ('FROM x\nSYSTEM "a" b\nc"', [Command("from", "x"), Command("system", 'a" b\nc')]),
        ("FROM x\nSYSTEM 'single'", [Command("from", "x"), Command("system", "'single'")]),
        ("FROM x\nREQUIRES v0.14.0", [Command("from", "x"), Command("requires", "0.14.0")]),
        ('FROM x\nSYSTEM ""', [Command("from", "x"), Command("system", "")]),
        ("FROM x\nSYSTEM a\u00a0b\u200bc", [Command("from", "x"), Command("system", "abc")]),
    ],
)
def test_commands(text: str, expected: list[Command]) -> None:
    assert list(parse(text).commands) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no FROM line"),
        ("SYSTEM x", "no FROM line"),
        ("FROM x\nBAD y", '(line 2): command must be one of "from"'),
        ("FROM\nx", "(line 1): command must be one of"),
        (
            "FROM x\nMESSAGE robot hi",
            '(line 2): message role must be one of "system", "user", or "assistant"',
        ),
        ('FROM x\nSYSTEM "open', "unexpected EOF"),
        ('FROM x\nSYSTEM """open"', "unexpected EOF"),
        ("FROM", "unexpected EOF"),
        ("FROM x\nPARAMETER key\n", "unexpected EOF: key"),
        ("FROM x\nMESSAGE user\n", "unexpected EOF: user"),
        ("FROM x\nREQUIRES soon", "requires must be a valid semver (e.g. 0.14.0)"),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(ModelfileError) as caught:
        parse(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(encoding: str) -> None:
    assert (
        parse(decode_text("FROM x\nSYSTEM héllo 你好".encode(encoding))).last("system")
        == "héllo 你好"
    )


def test_undecodable_bytes_are_refused() -> None:
    with pytest.raises(ModelfileError):
        decode_text(b"FROM \xff\xfe\xff")


value = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z")) | st.sampled_from(' \n"x')
).map(lambda s: s.replace('"""', "").strip('"'))


@given(value)
def test_round_trip(system: str) -> None:
    commands = [Command("from", "x"), Command("system", system)]
    assert parse(render(commands)).last("system") == system


@given(st.text())
def test_never_anything_but_its_own_error(text: str) -> None:
    try:
        parse(text)
    except ModelfileError as error:
        assert str(error)
