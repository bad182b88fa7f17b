"""How much room a prompt gets, as numbers."""

from __future__ import annotations

import pytest

from backends.types import Chat, Limits, Message
from daemon.api.growth import grown, may_not_fit
from daemon.api.options import resolve_options


def chat(text: str = "", max_tokens: int = -1, context_length: int = 4096) -> Chat:
    return Chat(
        request_id="1",
        messages=(Message(role="user", content=text),),
        limits=Limits(context_length=context_length, max_tokens=max_tokens),
    )


@pytest.mark.parametrize(
    ("nbytes", "max_tokens", "expected"),
    [(100, -1, False), (2500, -1, False), (3500, -1, True), (3500, 100, False), (1, 30_000, True)],
)
def test_only_what_may_be_too_long_is_counted(nbytes: int, max_tokens: int, expected: bool) -> None:
    assert may_not_fit(chat("x" * nbytes, max_tokens)) == expected


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "trained", "expected"),
    [
        (100, -1, 32768, None),
        (3073, -1, 32768, 8192),
        (20_000, 100, 32768, 32768),
        (20_000, 100, 131_072, 32768),
        (12_000, 30_000, 131_072, 16384),
        (30_000, 4000, 30_500, 30_500),
        (40_000, 10, 32768, None),
        (5000, 10, 4096, None),
    ],
)
def test_rows_grow_to_what_is_needed_and_trained(
    prompt: int, max_tokens: int, trained: int, expected: int | None
) -> None:
    options = resolve_options({}, {}, default_context_length=4096, trained_context_length=trained)
    found = grown(options, chat(max_tokens=max_tokens), prompt, trained)
    assert found.limits.context_length == (expected or 4096)
    assert found.wanted_context_length == expected
    assert (found is options) == (expected is None)
