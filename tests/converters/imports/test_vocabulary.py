"""A tokenizer.json imported as it is: beside the library on the original, and llama.cpp on the GGUF."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import tokenizers

from backends.text.tokenizer import Tokenizer
from converters.gguf import GgufFile, read_header
from converters.imports.pre_tokenizers import pre_tokenizer_name
from converters.tokenizer import build_tokenizer
from tests.converters.llama_cpp import ReferenceTokenizer
from tests.models.vocabularies import SAMPLE
from tests.parity.imported import imported

TEXTS = [*SAMPLE.splitlines(), "  two  spaces", "don't\n\n\nstop 12345", "", "über 🙂"]
KINDS = {
    "llama": "llama", "llama3": "gpt2", "qwen2": "gpt2", "bert": "bert", "xlm-roberta": "t5",
}  # fmt: skip


def header_of(path: pathlib.Path) -> GgufFile:
    with path.open("rb") as file:
        return read_header(file)


@pytest.mark.parametrize("family", KINDS)
def test_texts_are_cut_as_the_original_cuts_them(tmp_path: pathlib.Path, family: str) -> None:
    source, gguf = imported(tmp_path, family)
    original = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    original.no_truncation()
    original.no_padding()
    built = build_tokenizer(header_of(gguf).metadata)
    assert built.kind == KINDS[family]
    ours = Tokenizer(built.tokenizer_json, built.special)
    for text in TEXTS:
        assert list(ours.encode(text)) == original.encode(text, add_special_tokens=False).ids
        before, after = ours.passage_frame()
        framed = [*before, *ours.encode(text), *after]
        assert framed == original.encode(text).ids


@pytest.mark.parametrize("family", KINDS)
def test_llama_cpp_reads_the_tables_beside_it(tmp_path: pathlib.Path, family: str) -> None:
    source, gguf = imported(tmp_path, family)
    original = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    original.no_truncation()
    original.no_padding()
    reference = ReferenceTokenizer(gguf)
    texts = [text for text in TEXTS if text and "  " not in text and "\n" not in text]
    for text in texts:
        found = reference.encode(text, parses_special=False)
        assert found == original.encode(text, add_special_tokens=False).ids, text
    built = build_tokenizer(header_of(gguf).metadata)
    assert set(built.special.end_ids) >= set(reference.end_ids())
    reference.close()


def test_what_is_around_a_generation(tmp_path: pathlib.Path) -> None:
    _, gguf = imported(tmp_path, "qwen2")
    metadata = header_of(gguf).metadata
    special = build_tokenizer(metadata).special
    names = metadata["tokenizer.ggml.tokens"]
    assert isinstance(names, list)
    assert names[special.eos_id] == "<|im_end|>"
    assert not special.add_bos
    assert {names[index] for index in special.end_ids} >= {"<|im_end|>", "<|endoftext|>"}
    assert metadata["tokenizer.ggml.pre"] == "qwen2"
    assert names[-1] == "[PAD699]"
    assert metadata["tokenizer.chat_template"]


def test_a_beginning_is_told_from_the_post_processor(tmp_path: pathlib.Path) -> None:
    _, gguf = imported(tmp_path, "llama3")
    metadata = header_of(gguf).metadata
    special = build_tokenizer(metadata).special
    assert special.add_bos
    assert metadata["tokenizer.ggml.pre"] == "llama-bpe"


def test_a_file_of_another_vocabulary_is_not_used(tmp_path: pathlib.Path) -> None:
    _, gguf = imported(tmp_path, "qwen2")
    metadata = dict(header_of(gguf).metadata)
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    metadata["tokenizer.ggml.tokens"] = [*tokens[:500], *reversed(tokens[500:])]
    built = build_tokenizer(metadata)
    assert any("another vocabulary" in warning for warning in built.warnings)


SPLIT: dict[str, Any] = {"type": "Split", "behavior": "Isolated", "invert": False}
LEVEL: dict[str, Any] = {"type": "ByteLevel", "use_regex": False}
DIGITS: dict[str, Any] = {"type": "Digits", "individual_digits": True}


def steps(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


@pytest.mark.parametrize(
    ("part", "ignores_merges", "expected"),
    [
        ({"type": "ByteLevel", "use_regex": True}, False, "gpt-2"),
        (steps(DIGITS, {"type": "ByteLevel"}), False, "starcoder"),
        (steps(SPLIT | {"pattern": {"Regex": "[^x]+"}}, LEVEL), False, ""),
        ({"type": "Whitespace"}, False, ""),
        (None, False, ""),
    ],
)
def test_the_name_is_told_from_the_structure(
    part: Any, ignores_merges: bool, expected: str
) -> None:
    assert pre_tokenizer_name(part, ignores_merges=ignores_merges) == expected


def test_a_long_file_stays_out_of_the_inspection(tmp_path: pathlib.Path) -> None:
    from converters.inspector import run_inspect

    source, gguf = imported(tmp_path, "qwen2")
    file = json.loads((source / "tokenizer.json").read_text())
    run_inspect(gguf, "ab" * 32, tmp_path)
    found = json.loads((tmp_path / f"{'ab' * 32}.json").read_text())
    key = "tokenizer.huggingface.json"
    kept = found["metadata"][key]
    assert kept is None or json.loads(kept) == file
