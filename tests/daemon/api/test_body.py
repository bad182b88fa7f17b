import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.api.body import read_struct
from daemon.errors import Invalid


class Inner(msgspec.Struct, frozen=True):
    role: str = ""
    content: str = ""


class Outer(msgspec.Struct, frozen=True):
    model: str = ""
    stream: bool | None = None
    messages: tuple[Inner, ...] = ()
    options: dict[str, object] | None = None
    debug: bool = msgspec.field(default=False, name="_debug")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{}", Outer()),
        (b"null", Outer()),
        (b'{"model":"a"} trailing', Outer("a")),
        (b'{"model":"a"}{"model":"b"}', Outer("a")),
        (b' \r\n{"model":"a"}\n{"model":', Outer("a")),
        (b'{"MODEL":"a","Stream":false,"_DEBUG":true}', Outer("a", False, debug=True)),
        (b'{"model":"a","MODEL":"b"}', Outer("b")),
        (b'{"model":"a","model":"b"}', Outer("b")),
        (b'{"unknown":[1,{"x":null}],"model":"a"}', Outer("a")),
        (b'{"model":null,"stream":null,"messages":null,"options":null}', Outer()),
        (b'{"messages":[{"ROLE":"user","Content":null}]}', Outer(messages=(Inner("user"),))),
        # Keys inside options are the model's affair and stay as they are.
        (b'{"options":{"Stop":null}}', Outer(options={"Stop": None})),
        # Half of a surrogate pair, as clients that cut text send it.
        (b'{"model":"a\\ud83d"}', Outer("a�")),
        (b'{"model":"\\ud83d\\ude00"}', Outer("\U0001f600")),
        (b'{"model":"\xff"}', Outer("�")),
    ],
)
def test_lenient_reading(body: bytes, expected: Outer) -> None:
    assert read_struct(body, Outer) == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "missing request body"),
        (b" \n", "missing request body"),
        (b"{", "truncated"),
        (b"x", "invalid character"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"model":1}', r"Expected `str`, got `int` - at `\$.model`"),
        (b'{"stream":"yes"}', r"\$.stream"),
        (b'{"messages":[{"content":["parts"]}]}', r"\$.messages\[0\].content"),
        (b'{"model":NaN}', "invalid character"),
        (b"[" * 200_000, "depth"),
        (b'{"model":"a\\ud83d","x":' + b"[" * 200_000, "depth|malformed|truncated"),
    ],
)
def test_refusals_say_what_is_wrong(body: bytes, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        read_struct(body, Outer)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        assert isinstance(read_struct(body, Outer), Outer)
    except Invalid as error:
        assert error.message
