"""Unigram as llama.cpp cuts it, with and without SentencePiece's own table of characters."""

from __future__ import annotations

import base64
import functools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from converters.errors import MalformedFile
from converters.tokenizer import build_tokenizer
from tests.converters.hostile_texts import hostile_lines
from tests.converters.tokenizers.pairs import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    read_by_both,
    write_and_read,
)

LINES = 1400
SPECIAL = ["<pad>", "</s>", "<unk>", "<s>", "<mask>", "<user>"]
RANGES = (
    lambda chance: chance.randrange(128),
    lambda chance: chance.randrange(0x80, 0x3000),
    lambda chance: chance.randrange(0x3000, 0xD800),
    lambda chance: chance.randrange(0xE000, 0x20000),
    lambda chance: chance.choice([0x1, 0x20, 0x301, 0x323, 0x200D, 0xFE0F, 0x1160, 0x11A8, 0xFB01]),
)
REORDERED = "a\u0308\u0323"


@functools.cache
def character_map(name: str) -> bytes:
    package = Path(sentencepiece.__file__).parent
    return (package / "package_data" / f"{name}.bin").read_bytes()


@functools.cache
def pieces() -> list[tuple[str, float]]:
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=False)
    trainer = trainers.UnigramTrainer(vocab_size=900, show_progress=False, unk_token="<unk>")
    trained.train_from_iterator(hostile_lines(150, [], seed=5), trainer)
    learnt = json.loads(trained.to_str())["model"]["vocab"]
    return [(text, score) for text, score in learnt if text not in {*SPECIAL, "\0", "<0x41>"}]


def unigram_keys(name: str = "", **flags: bool) -> dict[str, Any]:
    """One letter and whatever was rare in training have no piece: unknown text is cut, too."""
    learnt = [(text, score) for text, score in pieces() if "\0" not in text and text != "ё"]
    tail = [("[PAD7]", UNUSED, -10000.0), ("un", UNUSED, -3.0), ("<0x41>", BYTE, 0.0)]
    tail = [entry for entry in tail if entry[0] not in dict(learnt)]
    kinds = [CONTROL, CONTROL, UNKNOWN, CONTROL, CONTROL, USER_DEFINED]
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": [*SPECIAL, *(text for text, _ in learnt), *(e[0] for e in tail)],
        "tokenizer.ggml.token_type": kinds + [NORMAL] * len(learnt) + [e[1] for e in tail],
        "tokenizer.ggml.scores": [0.0] * len(SPECIAL)
        + [score for _, score in learnt]
        + [e[2] for e in tail],
    }
    keys |= {f"tokenizer.ggml.{flag}": value for flag, value in flags.items()}
    if name:
        keys["tokenizer.ggml.precompiled_charsmap"] = character_map(name)
    return keys


@pytest.mark.parametrize("name", ["nmt_nfkc", "nfkc_cf", ""])
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("merges", [True, False])
def test_lines_are_cut_as_by_llama_cpp(tmp_path: Path, name: str, adds: bool, merges: bool) -> None:
    keys = unigram_keys(name, add_space_prefix=adds, remove_extra_whitespaces=merges)
    lines = [line.replace("\0", "") for line in hostile_lines(LINES, [*SPECIAL, "[PAD7]", "un"])]
    alike = [line for line in lines if not name or REORDERED not in line]
    assert len(alike) > 1000
    with read_by_both(tmp_path, keys) as pair:
        pair.assert_equal(alike)


def test_marks_out_of_order_are_put_in_order(tmp_path: Path) -> None:
    with read_by_both(tmp_path, unigram_keys("nmt_nfkc")) as pair:
        assert pair.ours.encode(REORDERED) == pair.ours.encode("a\u0323\u0308")


@pytest.mark.parametrize("name", ["nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", ""])
def test_no_text_brings_the_library_down(tmp_path: Path, name: str) -> None:
    keys = unigram_keys(name, add_space_prefix=True, remove_extra_whitespaces=True)
    chance = random.Random(3)
    with read_by_both(tmp_path, keys) as pair:
        for _ in range(1500):
            points = [chance.choice(RANGES)(chance) for _ in range(chance.randint(1, 6))]
            pair.ours.encode("".join(map(chr, points)))


@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True}, {"add_eos_token": False}])
def test_texts_are_framed_as_by_llama_cpp(tmp_path: Path, flags: dict[str, bool]) -> None:
    keys = unigram_keys("nmt_nfkc", **flags) | {"tokenizer.ggml.bos_token_id": 3}
    with read_by_both(tmp_path, keys) as pair:
        for line in ("", "hello", "<s>x"):
            pair.assert_framed_alike(line)
        assert pair.files.special.end_ids == pair.reference.end_ids()


def test_the_table_is_read_from_base64_too(tmp_path: Path) -> None:
    plain = build_tokenizer(write_and_read(tmp_path, unigram_keys("nmt_nfkc")))
    text = base64.b64encode(character_map("nmt_nfkc")).decode()
    for written in ([text], [text[:1000], text[1000:]], text):
        keys = unigram_keys() | {"tokenizer.ggml.precompiled_charsmap": written}
        assert build_tokenizer(write_and_read(tmp_path, keys)) == plain


def test_text_comes_back(tmp_path: Path) -> None:
    keys = unigram_keys("nmt_nfkc", add_space_prefix=True, remove_extra_whitespaces=True)
    with read_by_both(tmp_path, keys) as pair:
        assert pair.ours.decode(pair.ours.encode("hello don't <user> x")) == "hello don't<user>x"


def test_a_vocabulary_without_an_unknown_token_is_refused(tmp_path: Path) -> None:
    keys = {"tokenizer.ggml.model": "t5", "tokenizer.ggml.tokens": ["a", "b"]}
    metadata = write_and_read(tmp_path, keys)
    with pytest.raises(MalformedFile, match="unknown text"):
        build_tokenizer(metadata)
