"""Names of other programs' files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.models.foreign.naming import name_for, unused_name
from daemon.models.name import name_from_parts, parse_name


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Llama-3.2-1B-Instruct:Q4_K_M"),
        ("ember.gguf", "ember:latest"),
        ("phi3.f16.GGUF", "phi3:f16"),
        ("mine/chat-iq2_xs.gguf", "mine/chat:iq2_xs"),
        ("lmstudio-community/gemma-2-2b-it-GGUF/gemma-2-2b-it-Q8_0.gguf",
         "lmstudio-community/gemma-2-2b-it-GGUF:Q8_0"),
        ("a/b/c/plain.gguf", "b/c:plain"),
        ("pub/repo/big-Q4_K_M-00001-of-00003.gguf", "pub/repo:Q4_K_M"),
        ("pub/repo/unsloth-UD-Q2_K_XL.gguf", "pub/repo:UD-Q2_K_XL"),
        ("models--bartowski--Qwen2.5-7B-GGUF/snapshots/0a1b/Qwen2.5-7B-Q5_K_S.gguf",
         "hf.co/bartowski/Qwen2.5-7B-GGUF:Q5_K_S"),
        ("models--a--b--c/snapshots/0a/x.gguf", "hf.co/a/b--c:x"),
        ("my models/Größe (1).gguf", "my-models/Gr--e--1-:latest"),
        ("a.b/c.d/x.gguf", "a-b/c.d:x"),
        ("Q4_0.gguf", "Q4_0:latest"),
    ],
)  # fmt: skip
def test_names(path: str, expected: str) -> None:
    assert name_for(tuple(path.split("/"))).short == expected


@given(st.lists(st.text(min_size=1, max_size=120), min_size=1, max_size=5))
def test_every_path_gives_a_valid_name(parts: list[str]) -> None:
    name = name_for((*parts[:-1], parts[-1] + ".gguf"))
    assert name_from_parts(name.parts) == name


def test_a_name_in_use_gets_a_number() -> None:
    wanted = parse_name("A/b:Q4_0")
    taken = {parse_name(text).full.casefold() for text in ("a/b:q4_0", "a/b:q4_0-2")}
    assert unused_name(wanted, taken).short == "A/b:Q4_0-3"
    long = parse_name("m:" + "t" * 80)
    assert len(unused_name(long, {long.full.casefold()}).tag) == 80
