"""WordPiece as llama.cpp cuts it, and as the original implementation does where the two differ."""

from __future__ import annotations

import functools
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from converters.errors import MalformedFile
from converters.tokenizer import build_tokenizer
from converters.tokenizers.word_piece import LONGEST_WORD
from tests.converters.hostile_texts import hostile_lines
from tests.converters.tokenizers.pairs import CONTROL, NORMAL, read_by_both, write_and_read

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def original(lowers: bool) -> Tokenizer:
    cut = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    cut.normalizer = normalizers.BertNormalizer(lowercase=lowers)
    cut.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cut.decoder = decoders.WordPiece(cleanup=False)
    return cut


@functools.cache
def trained(lowers: bool) -> Tokenizer:
    """The original implementation, with pieces learnt from a part of the lines."""
    cut = original(lowers)
    trainer = trainers.WordPieceTrainer(
        vocab_size=700, show_progress=False, special_tokens=SPECIAL, limit_alphabet=400
    )
    # In GGUF a piece inside a word that begins with U+2581 looks like the beginning of one.
    lines = [line.replace("\u2581", "") for line in hostile_lines(200, [], seed=3)]
    cut.train_from_iterator(lines, trainer)
    return cut


def keys_of(cut: Tokenizer, lowers: bool) -> dict[str, Any]:
    pieces = cut.get_vocab()
    tokens = [phantom(piece) for piece in sorted(pieces, key=pieces.__getitem__)]
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL] * len(SPECIAL)
        + [NORMAL] * (len(tokens) - len(SPECIAL)),
        "tokenizer.ggml.normalizer.lowercase": lowers,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
    }


def phantom(piece: str) -> str:
    """As GGUF writes a piece."""
    if piece in SPECIAL:
        return piece
    return piece[2:] if piece.startswith("##") else "\u2581" + piece


def is_read_alike(line: str) -> bool:
    """llama.cpp keeps one letter of a Hangul syllable and no mark that has a width of its own."""
    return not any("가" <= x <= "힣" or unicodedata.category(x) in ("Mc", "Me") for x in line)


@pytest.mark.parametrize("lowers", [True, False])
def test_lines_are_cut_as_by_llama_cpp_and_the_original(tmp_path: Path, lowers: bool) -> None:
    lines = [line.replace("\x85", "") for line in hostile_lines(2000, SPECIAL)]
    alike = [line for line in lines if not lowers or is_read_alike(line)]
    assert len(alike) > 1200
    with read_by_both(tmp_path, keys_of(trained(lowers), lowers)) as pair:
        pair.assert_equal(alike)
        for line in lines:
            wanted = trained(lowers).encode(line, add_special_tokens=False).ids
            assert list(pair.ours.encode(line)) == wanted, repr(line)


def test_a_syllable_keeps_its_letters(tmp_path: Path) -> None:
    """A real difference, not one of a vocabulary that knows neither."""
    with read_by_both(tmp_path, keys_of(trained(True), True)) as pair:
        assert list(pair.ours.encode("한국어")) != pair.reference.encode("한국어")


@pytest.mark.parametrize("line", ["", "hello", "[CLS] hello", "a [SEP] b [SEP]"])
def test_texts_are_framed_as_by_llama_cpp(tmp_path: Path, line: str) -> None:
    with read_by_both(tmp_path, keys_of(trained(True), True)) as pair:
        pair.assert_framed_alike(line)
        assert pair.ours.passage_frame() == ((2,), (3,))
        assert pair.files.kind == "bert"


def test_cls_stands_for_bos_and_eos_is_not_the_end_of_a_text(tmp_path: Path) -> None:
    keys = keys_of(trained(True), True)
    keys["tokenizer.ggml.cls_token_id"] = keys.pop("tokenizer.ggml.bos_token_id")
    keys["tokenizer.ggml.eos_token_id"] = 9
    special = build_tokenizer(write_and_read(tmp_path, keys)).special
    assert (special.bos_id, special.eos_id) == (2, 3)


def test_a_word_longer_than_the_models_allow_is_unknown(tmp_path: Path) -> None:
    with read_by_both(tmp_path, keys_of(trained(True), True)) as pair:
        assert len(pair.ours.encode("a" * LONGEST_WORD)) > 1
        assert pair.ours.encode("a" * (LONGEST_WORD + 1)) == (1,)


def test_pieces_give_their_text_back(tmp_path: Path) -> None:
    with read_by_both(tmp_path, keys_of(trained(True), True)) as pair:
        assert pair.ours.decode(pair.ours.encode("hello, café")).split() == ["hello", ",", "cafe"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": ["[UNK]", "a"], "token_type": [3, 1]}, "frame a text"),
        (
            {"tokens": ["[UNK]", "x", "▁##x"], "token_type": [3, 1, 1], "unknown_token_id": 0}
            | {"bos_token_id": 0, "seperator_token_id": 0},
            "'##x' appears twice",
        ),
        (
            {"tokens": ["a", "b"], "token_type": [1, 1], "unknown_token_id": 7}
            | {"bos_token_id": 0, "seperator_token_id": 0},
            "unknown words",
        ),
    ],
)
def test_unusable_vocabularies_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    keys = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    metadata = write_and_read(tmp_path, {"tokenizer.ggml.model": "bert", **keys})
    with pytest.raises(MalformedFile, match=message):
        build_tokenizer(metadata)
