"""A `tokenizer.json` that a GGUF carries as it is (`tokenizer.huggingface.json`), made safe to run.

Taken over are its normaliser, pre-tokenizer, decoder, model and added tokens, unchanged. Left out
are truncation, padding and post-processing, which are the engine's business here, and added tokens
beyond the model's table. A file whose vocabulary is not that of the GGUF's own list is not used.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec

from converters.errors import MalformedFile
from converters.strict_json import parse_json
from converters.tokenizers.character_map import check_table
from converters.tokenizers.tokenizer_file import TOKENIZER, TokenizerFile, read_tokenizer
from converters.tokenizers.vocabulary import TokenType, Vocabulary

FILE_KEY = "tokenizer.huggingface.json"
MAX_PATTERN_CHARACTERS = 8192
_MAX_STEPS = 256


def kept_json(text: str, vocabulary: Vocabulary) -> bytes:
    """The file's bytes as they are run. Raises MalformedFile, Unsupported."""
    tokenizer = read_tokenizer(text)
    found = parse_json(text, TOKENIZER)
    count = len(vocabulary.texts)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        _check_steps(found.get(part))
    beyond = [index for index in tokenizer.pieces if index >= count]
    if beyond:
        raise MalformedFile(f"{TOKENIZER} has the id {min(beyond)}, the vocabulary ends at {count}")
    return msgspec.json.encode({
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [token for token in found.get("added_tokens") or [] if token["id"] < count],
        "normalizer": found.get("normalizer"),
        "pre_tokenizer": found.get("pre_tokenizer"),
        "post_processor": None,
        "decoder": found.get("decoder"),
        "model": found["model"],
    })  # fmt: skip


def agrees(text: str, vocabulary: Vocabulary, kind: str) -> bool:
    """Whether the two say the same about every id that both have, as far as they write it alike."""
    tokenizer = read_tokenizer(text)
    return not any(
        index < len(vocabulary.texts)
        and vocabulary.types[index] != TokenType.UNUSED
        and not vocabulary.texts[index].startswith("[PAD")
        and not _is_same(piece, vocabulary.texts[index], kind)
        for index, piece in _texts(tokenizer).items()
    )


def _texts(tokenizer: TokenizerFile) -> dict[int, str]:
    added = {index: token.content for index, token in tokenizer.added.items()}
    return tokenizer.pieces | added


def _is_same(piece: str, text: str, kind: str) -> bool:
    if kind != "bert":
        return piece == text
    return text in (piece, f"\u2581{piece}", piece.removeprefix("##"))


def _check_steps(part: Any) -> None:
    """Tables that the library follows without bounds are checked; patterns are bounded in length."""
    pending, seen = [part], 0
    while pending:
        step = pending.pop()
        seen += 1
        if seen > _MAX_STEPS:
            raise MalformedFile(f"{TOKENIZER}: more than {_MAX_STEPS} steps")
        if isinstance(step, list):
            pending += step
        elif isinstance(step, dict):
            if step.get("type") == "Precompiled":
                check_table(_decoded(step.get("precompiled_charsmap")))
            pending += [each for each in step.values() if isinstance(each, dict | list)]
            if any(isinstance(v, str) and len(v) > MAX_PATTERN_CHARACTERS for v in _texts_of(step)):
                raise MalformedFile(f"{TOKENIZER}: a pattern is over {MAX_PATTERN_CHARACTERS} long")


def _texts_of(step: dict[str, Any]) -> list[Any]:
    return [value for key, value in step.items() if key != "precompiled_charsmap"]


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(text or "", validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise MalformedFile(f"{TOKENIZER}: its table of characters is not base64") from None
