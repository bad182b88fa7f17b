"""The parts of a `tokenizer.json` (the format of Hugging Face's `tokenizers`) that all kinds share."""

from __future__ import annotations

from typing import Any

import msgspec

from converters.tokenizers.vocabulary import TokenType, Vocabulary

Json = dict[str, Any]

# Matched in a text before anything else; those that are not user-defined are not shown.
_MATCHED_WHOLE = frozenset({TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN})


def encode_tokenizer(
    vocabulary: Vocabulary,
    model: Json,
    decoder: Json,
    *,
    normalizer: Json | None = None,
    pre_tokenizer: Json | None = None,
    stripping: frozenset[int] = frozenset(),
    lstripping: frozenset[int] = frozenset(),
) -> bytes:
    """`stripping`: ids that swallow the white space after them, `lstripping`: that before them.

    No text is added around a prompt.
    """
    whole = [
        _added_token(
            index,
            vocabulary.texts[index],
            kind,
            strips=index in stripping,
            lstrips=index in lstripping,
        )
        for index, kind in enumerate(vocabulary.types)
        if kind in _MATCHED_WHOLE
    ]
    return msgspec.json.encode({
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": whole,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    })  # fmt: skip


def bpe_model(
    vocabulary: Vocabulary,
    merges: list[tuple[str, str]],
    *,
    unknown: str | None = None,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> Json:
    """`merges` from the first to be done to the last; each makes a token of the vocabulary."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": vocabulary.ids,
        "merges": merges,
    }


def _added_token(index: int, text: str, kind: int, *, strips: bool, lstrips: bool) -> Json:
    return {
        "id": index,
        "content": text,
        "single_word": False,
        "lstrip": lstrips,
        "rstrip": strips,
        "normalized": False,
        "special": kind != TokenType.USER_DEFINED,
    }
