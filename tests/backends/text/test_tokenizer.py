from __future__ import annotations

import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.text.tokenizer import Tokenizer
from converters.artifact import ArtifactError, SpecialTokens
from tests.backends.text.small_tokenizers import byte_level, sentence_piece

BYTES = byte_level()
PIECES = sentence_piece()


def joined(tokenizer: Tokenizer, text: str) -> bytes:
    return b"".join(tokenizer.piece(token_id) for token_id in tokenizer.encode(text))


@given(st.text())
def test_byte_level_pieces_are_the_texts_own_bytes(text: str) -> None:
    assert joined(BYTES, text) == text.encode()


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
def test_sentence_pieces_are_the_texts_own_bytes(text: str) -> None:
    """Behind the one space that the model puts before a fragment."""
    assert joined(PIECES, text) in (b" " + text.encode(), text.encode())


def test_every_single_byte_is_its_own_piece() -> None:
    assert [BYTES.piece(value) for value in range(256)] == [bytes([v]) for v in range(256)]
    assert [PIECES.piece(v + 3) for v in range(256)] == [bytes([v]) for v in range(256)]


def test_merges_and_space_marks() -> None:
    assert BYTES.encode("hello") == (257, ord("l"), ord("o"))
    ids = PIECES.encode("hello a")
    assert [PIECES.piece(i) for i in ids] == [b" he", b"l", b"l", b"o", b" a"]


def test_special_text_is_recognised_shown_and_hidden() -> None:
    assert BYTES.encode("a</s><tool>") == (ord("a"), 259, 260)
    assert BYTES.piece(259) == b"</s>"
    assert BYTES.piece(259, show_special=False) == b""
    assert BYTES.piece(260, show_special=False) == b"<tool>"
    assert BYTES.decode((97, 259, 98), show_special=False) == "ab"


def test_unknown_ids_have_no_bytes() -> None:
    assert BYTES.piece(-1) == b""
    assert BYTES.piece(10_000) == b""


def test_bos_is_added_once_and_only_where_the_model_wants_it() -> None:
    assert BYTES.encode_prompt("a") == (258, 97)
    assert BYTES.encode_prompt("<s>a") == (258, 97)
    assert BYTES.encode_prompt("a", add_special=False) == (97,)
    assert byte_level(add_bos=False).encode_prompt("a") == (97,)
    assert byte_level(bos_id=-1).encode_prompt("a") == (97,)


@pytest.mark.parametrize("text", ["hello a", "<s>hello</s>a b", "<s> hello", "", " a", "é€"])
def test_decoding_gives_what_encodes_to_the_same_ids(text: str) -> None:
    for tokenizer in (BYTES, PIECES):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode(tokenizer.decode(ids)) == ids


def test_the_models_own_space_is_kept_without_the_prefix_rule() -> None:
    tokenizer = sentence_piece(add_space_prefix=False)
    assert tokenizer.decode(tokenizer.encode("a")) == " a"


def test_newlines() -> None:
    assert BYTES.newline_ids() == {10}
    assert PIECES.newline_ids() == {3 + 10}


@given(st.text(max_size=300))
def test_fewest_ids_is_a_lower_bound(text: str) -> None:
    assert BYTES.fewest_ids(text) <= len(BYTES.encode(text))
    assert PIECES.fewest_ids(text) <= len(PIECES.encode(text))


def test_fewest_ids_says_something() -> None:
    assert BYTES.fewest_ids("x" * 10_000) > 100


@pytest.mark.parametrize("data", [b"{", b"{}", b"\xff", b"[]", b'{"model": null}'])
def test_an_unreadable_file_is_an_artifact_error(data: bytes, tmp_path: pathlib.Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path, SpecialTokens())


def test_a_decoder_that_is_not_known_is_refused() -> None:
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    data = json.dumps({"version": "1.0", "added_tokens": [], "model": model}).encode()
    with pytest.raises(ArtifactError, match="no known decoder"):
        Tokenizer(data, SpecialTokens())


def test_a_missing_file_is_an_artifact_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path, SpecialTokens())


def test_what_is_no_id_is_nothing_and_is_not_remembered() -> None:
    tokenizer = byte_level()
    assert tokenizer.decode([-1, -(2**60), 2**31, 2**40, 10**9]) == ""
    assert tokenizer._pieces == {}
