"""The tokenizer.json that we write cuts texts as llama.cpp does on the same GGUF."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from converters.errors import MalformedFile, Unsupported
from converters.gguf import read_header
from converters.tokenizer import TokenizerFiles, build_tokenizer, tokenizer_refusal
from converters.tokenizers.pre_tokenizers import PRE_TOKENIZERS
from tests.converters.hostile_texts import hostile_lines
from tests.converters.llama_cpp import ReferenceTokenizer, write_vocabulary_model
from tests.models.vocabularies import build_vocabulary

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
LINES = 1200
# llama.cpp takes letters beyond ASCII for both cases and cuts marks off in the first families, and
# takes wide spaces out of a range of characters in the last but one, and cuts spaces before a
# number apart in the last; the models' own expressions do not.
DIFFERENT_BY_INTENT = {
    *("tekken", "gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2", "kimi-k2"),
    *("deepseek-coder", "deepseek-llm"),
    "afmoe",
}


class Pair(NamedTuple):
    """Both readings of one file."""

    files: TokenizerFiles
    ours: Tokenizer
    reference: ReferenceTokenizer

    def encode(self, line: str) -> list[int]:
        return self.ours.encode(line, add_special_tokens=False).ids


Open = Callable[[dict[str, Any]], Pair]


@pytest.fixture
def open_pair(tmp_path: Path) -> Iterator[Open]:
    """Writes the keys into a GGUF and reads it with our converter and with llama.cpp."""
    references: list[ReferenceTokenizer] = []

    def open_keys(keys: dict[str, Any]) -> Pair:
        path = tmp_path / f"{len(references)}.gguf"
        write_vocabulary_model(path, len(keys["tokenizer.ggml.tokens"]), keys)
        files = build_tokenizer(read_header(path).metadata)
        references.append(ReferenceTokenizer(path))
        return Pair(files, Tokenizer.from_buffer(files.tokenizer_json), references[-1])

    yield open_keys
    for reference in references:
        reference.close()


@functools.cache
def corpus() -> list[str]:
    """Without NUL, at which llama.cpp ends a token of a vocabulary."""
    return [line.replace("\0", "") for line in hostile_lines(300, [], seed=11)]


@functools.cache
def scored_keys() -> dict[str, Any]:
    """Pieces by the order in which a BPE learns them, over whole lines: they cross spaces."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=False)
    trained.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=1500, show_progress=False))
    learnt = trained.get_vocab()
    head = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tail = ["<|user|>", "<|end|>", "[INST]", "<b>", "  "]
    free = learnt.keys() - set(head + tail)
    pieces = sorted(free, key=lambda piece: (len(piece) == 1, learnt[piece]))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": head + pieces + tail,
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL]
        + [BYTE] * 256
        + [NORMAL] * len(pieces)
        + [CONTROL, CONTROL, USER_DEFINED, USER_DEFINED, USER_DEFINED],
        "tokenizer.ggml.scores": [0.0] * len(head)
        + [-1.0 - rank for rank in range(len(pieces))]
        + [-1e4 - rank for rank in range(len(tail))],
    }


def byte_level_keys(pre: str) -> dict[str, Any]:
    return byte_level_tables() | {"tokenizer.ggml.pre": pre}


@functools.cache
def byte_level_tables() -> dict[str, Any]:
    """Merges learnt over whole lines, so that every cut of the pre-tokenizer shows in the ids."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[^ ]+ ?[^ ]*"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1500, show_progress=False, initial_alphabet=alphabet)
    trained.train_from_iterator(corpus(), trainer)
    learnt = trained.get_vocab()
    tokens = sorted(learnt, key=learnt.__getitem__)
    merges = json_merges(trained)
    tail = ["<|im_start|>", "<|im_end|>", "<tool>", "  "]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens + tail,
        "tokenizer.ggml.token_type": [NORMAL] * len(tokens)
        + [CONTROL, CONTROL, USER_DEFINED, USER_DEFINED],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(tokens),
        "tokenizer.ggml.eos_token_id": len(tokens) + 1,
    }


def json_merges(trained: Tokenizer) -> list[str]:
    return [" ".join(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]


def assert_equal_ids(pair: Pair, lines: list[str]) -> None:
    for line in lines:
        assert pair.encode(line) == pair.reference.encode(line), repr(line)


@pytest.mark.parametrize("adds_space", [True, False])
def test_scored_bpe_equals_llama_cpp(open_pair: Open, adds_space: bool) -> None:
    pair = open_pair(scored_keys() | {"tokenizer.ggml.add_space_prefix": adds_space})
    assert pair.files.special.add_space_prefix is adds_space
    assert not pair.files.warnings
    assert_equal_ids(pair, hostile_lines(LINES, ["<s>", "</s>", "<unk>", "<|user|>", "<|end|>"]))


@pytest.mark.parametrize("adds_space", [True, False])
def test_scored_bpe_gives_the_text_back(open_pair: Open, adds_space: bool) -> None:
    keys = scored_keys() | {"tokenizer.ggml.add_space_prefix": adds_space}
    pair = open_pair(keys)
    changed = ("▁", "<0x41>", *(("[INST]", "<b>", "  ") if adds_space else ()))
    lines = [line for line in hostile_lines(LINES, []) if not any(mark in line for mark in changed)]
    assert len(lines) > LINES // 10
    for line in lines:
        ids = pair.encode(line)
        assert pair.ours.decode(ids) == line == pair.reference.decode(ids), repr(line)


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS.keys() - DIFFERENT_BY_INTENT))
def test_byte_level_bpe_equals_llama_cpp(open_pair: Open, pre: str) -> None:
    pair = open_pair(byte_level_keys(pre))
    assert pair.files.pre == pre and not pair.files.warnings
    assert pair.files.special.add_bos == pair.reference.adds_bos()
    special = ["<|im_start|>", "<|im_end|>", "<tool>"]
    count = LINES if pre in ("default", "gpt-2", "llama-bpe", "qwen2", "smollm") else LINES // 20
    assert_equal_ids(pair, hostile_lines(count, special))


@pytest.mark.parametrize("pre", sorted(DIFFERENT_BY_INTENT))
def test_byte_level_bpe_differs_from_llama_cpp_only_beyond_ascii(open_pair: Open, pre: str) -> None:
    pair = open_pair(byte_level_keys(pre))
    lines = hostile_lines(LINES, ["<|im_start|>"])
    spaced_number = re.compile(r"\s\s\d" if pre == "afmoe" else r"\A\b\B")
    alike = [line for line in lines if line.isascii() and not spaced_number.search(line)]
    assert len(alike) > 20
    assert_equal_ids(pair, alike)
    assert any(pair.encode(line) != pair.reference.encode(line) for line in lines)


def test_tekken_keeps_marks_with_their_letters(open_pair: Open) -> None:
    """As the model's own expression says."""
    cuts = open_pair(byte_level_keys("tekken")).ours.pre_tokenizer
    assert cuts is not None
    spans = [span for _, span in cuts.pre_tokenize_str("xe\u0301yZÉé")]
    assert spans == [(0, 4), (4, 7)]


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("kimi-k2", "HelloWORLD漢字ab1234", ["Hello", "WORLD", "漢字", "ab", "123", "4"]),
        ("afmoe", "a  12345เไ", ["a", "  ", "12", "345", "เไ"]),
        ("superbpe", "a 1234567 b", ["a ", "1", "234", "567", " b"]),
        ("deepseek-llm", "ЯЖ ქა\n12", ["ЯЖ", " ", "ქა", "\n", "12"]),
    ],
)
def test_words_are_those_of_the_models(
    open_pair: Open, pre: str, text: str, words: list[str]
) -> None:
    cuts = open_pair(byte_level_keys(pre)).ours.pre_tokenizer
    assert cuts is not None
    assert [text[slice(*span)] for _, span in cuts.pre_tokenize_str(text)] == words


@pytest.mark.parametrize("pre", ["jina-v2-code", "gpt-2"])
def test_a_mask_swallows_the_space_before_it(open_pair: Open, pre: str) -> None:
    keys = byte_level_keys(pre)
    keys["tokenizer.ggml.tokens"] = [*keys["tokenizer.ggml.tokens"], "<mask>"]
    keys["tokenizer.ggml.token_type"] = [*keys["tokenizer.ggml.token_type"], CONTROL]
    pair = open_pair(keys)
    assert_equal_ids(pair, ["a <mask> b", " \t<mask>", "a\t\n<mask><mask>"])


@pytest.mark.parametrize("pre", ["default", "llama-bpe", "qwen2", "deepseek-v3"])
def test_byte_level_bpe_gives_the_text_back(open_pair: Open, pre: str) -> None:
    pair = open_pair(byte_level_keys(pre))
    for line in hostile_lines(LINES, ["<|im_start|>"]):
        assert pair.ours.decode(pair.encode(line), skip_special_tokens=False) == line


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_special_ids_equal_llama_cpp(open_pair: Open, kind: str) -> None:
    """Every text that llama.cpp ends a generation at, here typed as ordinary text."""
    keys = dict(scored_keys() if kind == "llama" else byte_level_keys("qwen2"))
    names = ["<|eot_id|>", "<|endoftext|>", "<end_of_turn>", "<|return|>", "<|call|>", "<|end|>"]
    names += ["<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|fim_prefix|>", "<|channel|>"]
    names = [name for name in names if name not in keys["tokenizer.ggml.tokens"]]
    keys["tokenizer.ggml.tokens"] = keys["tokenizer.ggml.tokens"] + names
    keys["tokenizer.ggml.token_type"] = keys["tokenizer.ggml.token_type"] + [NORMAL] * len(names)
    if kind == "llama":
        keys["tokenizer.ggml.scores"] = keys["tokenizer.ggml.scores"] + [-2e4] * len(names)
    pair = open_pair(keys)
    assert pair.files.special.end_ids == pair.reference.end_ids()
    assert (pair.files.special.bos_id, pair.files.special.eos_id) == pair.reference.bos_and_eos()
    lines = hostile_lines(LINES // 4, names)
    assert_equal_ids(pair, lines)


@pytest.mark.parametrize("name", ["phi-3-mini", "Phi3", "another"])
def test_phi3_tokens_swallow_white_space(open_pair: Open, name: str) -> None:
    keys = scored_keys() | {"general.name": name}
    keys["tokenizer.ggml.tokens"] = [*keys["tokenizer.ggml.tokens"], "<|endoftext|>"]
    keys["tokenizer.ggml.token_type"] = [*keys["tokenizer.ggml.token_type"], CONTROL]
    keys["tokenizer.ggml.scores"] = [*keys["tokenizer.ggml.scores"], -3e4]
    pair = open_pair(keys)
    assert_equal_ids(pair, ["<|user|> \n hi<|end|>\n<|user|>", "<s> hi<|end|>\n ."])


def test_the_models_of_the_other_tests_are_cut_alike(open_pair: Open) -> None:
    for kind, pre in (("llama", "default"), ("gpt2", "llama-bpe"), ("gpt2", "gpt-2")):
        made = build_vocabulary(kind, pre)
        keys: dict[str, Any] = {
            "tokenizer.ggml.model": kind,
            "tokenizer.ggml.pre": made.pre,
            "tokenizer.ggml.tokens": made.tokens,
            "tokenizer.ggml.token_type": made.types,
            "tokenizer.ggml.eos_token_id": made.eos,
            "tokenizer.ggml.eot_token_id": made.eot,
        }
        if made.scores:
            keys["tokenizer.ggml.scores"] = made.scores
        if made.merges:
            keys["tokenizer.ggml.merges"] = made.merges
        pair = open_pair(keys)
        assert pair.files.special.end_ids == pair.reference.end_ids()
        assert_equal_ids(pair, hostile_lines(LINES // 4, ["<|im_start|>", "<|eot_id|>", "<s>"]))


def metadata(keys: dict[str, Any]) -> dict[str, Any]:
    """As the header reader gives it: numbers in arrays."""
    numbers = ("scores", "token_type", "eos_token_ids")
    return {key: np.array(value) if key.endswith(numbers) else value for key, value in keys.items()}


def test_early_llama3_files_are_put_right() -> None:
    keys = byte_level_keys("llama-bpe") | {}
    keys["tokenizer.ggml.tokens"] = [
        *keys["tokenizer.ggml.tokens"],
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|eot_id|>",
    ]
    keys["tokenizer.ggml.token_type"] = [*keys["tokenizer.ggml.token_type"], *[CONTROL] * 3]
    last = len(keys["tokenizer.ggml.tokens"]) - 1
    keys["tokenizer.ggml.eos_token_id"] = last - 1
    del keys["tokenizer.ggml.pre"]
    files = build_tokenizer(metadata(keys))
    assert files.pre == "llama-bpe" and files.special.eos_id == last and files.special.add_bos
    assert {last - 1, last} <= set(files.special.end_ids)
    assert files.warnings


def test_a_missing_pre_tokenizer_is_the_default_with_a_warning() -> None:
    keys = dict(byte_level_keys("default"))
    del keys["tokenizer.ggml.pre"]
    files = build_tokenizer(metadata(keys))
    assert files.pre == "default" and len(files.warnings) == 1


def test_listed_ends_count() -> None:
    keys = byte_level_keys("qwen2") | {"tokenizer.ggml.eos_token_ids": [3, 5, 10**6]}
    assert {3, 5} < set(build_tokenizer(metadata(keys)).special.end_ids)


def test_tied_scores_are_told() -> None:
    keys = dict(scored_keys())
    keys["tokenizer.ggml.scores"] = [0.0] * len(keys["tokenizer.ggml.tokens"])
    assert "share their score" in build_tokenizer(metadata(keys)).warnings[0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "rwkv"}, Unsupported, "'rwkv'"),
        ({"model": 3}, MalformedFile, "tokenizer.ggml.model"),
        ({"pre": "chameleon"}, Unsupported, "'chameleon'"),
        ({"tokens": []}, MalformedFile, "tokens is missing"),
        ({"tokens": ["a", "a"]}, MalformedFile, "'a' appears twice"),
        ({"tokens": ["a" * 2000]}, MalformedFile, "2000 characters"),
        ({"merges": 1}, MalformedFile, "merges is missing"),
        ({"token_type": [1]}, MalformedFile, "token_type"),
        ({"bos_token_id": "x"}, MalformedFile, "bos_token_id"),
    ],
)
def test_refusals_name_their_reason(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    keys = byte_level_keys("qwen2") | {f"tokenizer.ggml.{key}": v for key, v in change.items()}
    with pytest.raises(error, match=message):
        build_tokenizer(metadata(keys))


def test_a_vocabulary_without_bytes_is_refused() -> None:
    keys = dict(scored_keys())
    keys["tokenizer.ggml.tokens"] = [
        text.replace("<0x0A>", "<newline>") for text in keys["tokenizer.ggml.tokens"]
    ]
    with pytest.raises(Unsupported, match="<0x0A>"):
        build_tokenizer(metadata(keys))


def test_refusals_are_known_before_the_vocabulary_is_read() -> None:
    assert tokenizer_refusal({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2"}) == ""
    assert "'rwkv'" in tokenizer_refusal({"tokenizer.ggml.model": "rwkv"})
    assert "'x'" in tokenizer_refusal({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "x"})
