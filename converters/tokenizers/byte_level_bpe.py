"""Byte-level BPE ("gpt2" in GGUF): words cut by regular expressions, then merges in a given order."""

from __future__ import annotations

from converters.errors import MalformedFile
from converters.gguf import Value
from converters.tokenizers.pre_tokenizers import PreTokenizer
from converters.tokenizers.tokenizer_json import Json, bpe_model, encode_tokenizer
from converters.tokenizers.vocabulary import Vocabulary

_BYTE_LEVEL: Json = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": False,
}


def byte_level_bpe_json(
    vocabulary: Vocabulary,
    metadata: dict[str, Value],
    pre_tokenizer: PreTokenizer,
    *,
    stripping: frozenset[int],
    lstripping: frozenset[int],
) -> tuple[bytes, tuple[str, ...]]:
    """The file's bytes and warnings. Raises MalformedFile where the merges are missing."""
    listed = metadata.get("tokenizer.ggml.merges")
    if not isinstance(listed, list):
        raise MalformedFile("tokenizer.ggml.merges is missing")
    merges = _usable_merges(vocabulary, listed)
    model = bpe_model(vocabulary, merges, ignore_merges=pre_tokenizer.ignores_merges)
    encoded = encode_tokenizer(
        vocabulary,
        model,
        _BYTE_LEVEL,
        pre_tokenizer=_cuts(pre_tokenizer.patterns),
        stripping=stripping,
        lstripping=lstripping,
    )
    unusable = len(listed) - len(merges)
    warning = f"{unusable} of {len(listed)} merges make no token of the vocabulary, or repeat"
    return encoded, (warning,) if unusable else ()


def _usable_merges(vocabulary: Vocabulary, listed: list[str]) -> list[tuple[str, str]]:
    """The first space that is not the first character parts the two; of repeats the first counts."""
    ids, pairs = vocabulary.ids, []
    for merge in dict.fromkeys(listed):
        left, space, right = merge.partition(" ")
        if not left:
            left, space, right = _cut_later(merge)
        if space and left in ids and right in ids and left + right in ids:
            pairs.append((left, right))
    return pairs


def _cut_later(merge: str) -> tuple[str, str, str]:
    left, space, right = merge[1:].partition(" ")
    return merge[:1] + left, space, right


def _cuts(patterns: tuple[str, ...]) -> Json:
    splits: list[Json] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, _BYTE_LEVEL]}
