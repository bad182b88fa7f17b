"""The vocabulary of a GGUF: texts, scores and types, checked and with known mistakes put right.

The corrections are llama.cpp's: files exist whose end-of-turn token is typed as ordinary text.
"""

from __future__ import annotations

import enum

import msgspec
import numpy as np

from converters.errors import MalformedFile
from converters.gguf import Value

MAX_TOKENS = 1 << 20
MAX_TOKEN_CHARACTERS = 1024

# Texts that end a generation wherever they are in a vocabulary.
END_TEXTS = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    "<｜end▁of▁sentence｜>", "[e~[",
})  # fmt: skip
# Texts of the fill-in-the-middle tokens, in order of preference. The last three end a generation.
FILL_TEXTS = {
    "fim_pre": ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>",
                "▁<PRE>", "<|code_prefix|>", "<|prefix|>"),
    "fim_suf": ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>",
                "▁<SUF>", "<|code_suffix|>", "<|suffix|>"),
    "fim_mid": ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>",
                "▁<MID>", "<|code_middle|>", "<|middle|>"),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}  # fmt: skip
# gpt-oss marks its channels with these: they are text to the reader of the answer.
_ALWAYS_SHOWN = frozenset({"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"})


class TokenType(enum.IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Vocabulary(msgspec.Struct, frozen=True):
    """Index = token id. `ids` is the same the other way round; texts are unique."""

    texts: list[str]
    types: list[int]
    scores: list[float]
    ids: dict[str, int]

    def id_of(self, *texts: str) -> int:
        """The id of the first of `texts` that is in the vocabulary, or -1."""
        return next((self.ids[text] for text in texts if text in self.ids), -1)


def read_vocabulary(metadata: dict[str, Value]) -> Vocabulary:
    """Raises MalformedFile where tokens are missing, repeated, too many or too long."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise MalformedFile("tokenizer.ggml.tokens is missing")
    if len(tokens) > MAX_TOKENS:
        raise MalformedFile(f"{len(tokens)} tokens: at most {MAX_TOKENS} are allowed")
    texts = [text or f"[EMPTY_{index}]" for index, text in enumerate(tokens)]
    longest = max(texts, key=len)
    if len(longest) > MAX_TOKEN_CHARACTERS:
        raise MalformedFile(f"a token has {len(longest)} characters, over {MAX_TOKEN_CHARACTERS}")
    ids = {text: index for index, text in enumerate(texts)}
    if len(ids) != len(texts):
        twice = next(text for index, text in enumerate(texts) if ids[text] != index)
        raise MalformedFile(f"the token {twice!r} appears twice in the vocabulary")
    types = _numbers(metadata, "tokenizer.ggml.token_type", len(texts), TokenType.NORMAL)
    scores = _numbers(metadata, "tokenizer.ggml.scores", len(texts), 0.0)
    corrected = _corrected_types(ids, [int(kind) for kind in types])
    return Vocabulary(texts, corrected, [float(score) for score in scores], ids)


def _numbers(metadata: dict[str, Value], key: str, count: int, default: float) -> list[float]:
    values = metadata.get(key)
    if values is None:
        return [default] * count
    if not isinstance(values, np.ndarray) or len(values) < count:
        raise MalformedFile(f"{key} does not have a number for each of {count} tokens")
    if not np.isfinite(values).all():
        raise MalformedFile(f"{key} holds a value that is not a number")
    return values[:count].tolist()


def _corrected_types(ids: dict[str, int], types: list[int]) -> list[int]:
    fill_ids = [
        next((ids[text] for text in texts if text in ids), -1) for texts in FILL_TEXTS.values()
    ]
    ends = {text for text in END_TEXTS if text in ids}
    shown = {text for text in _ALWAYS_SHOWN if text in ids}
    for token_id in [*(ids[text] for text in ends), *(found for found in fill_ids if found >= 0)]:
        types[token_id] = TokenType.CONTROL
    for text in shown:
        types[ids[text]] = TokenType.USER_DEFINED
    for text in texts_that_do_not_end(ends):
        types[ids[text]] = TokenType.NORMAL if text == "</s>" else TokenType.USER_DEFINED
    return types


def texts_that_do_not_end(ends: set[str]) -> set[str]:
    """Which of the end texts of a vocabulary are ordinary there: gpt-oss, solar-open, gemma 4."""
    exceptions: set[str] = set()
    calls = bool(ends & {"<|call|>", "<|calls|>"})
    if calls and ends & {"<|return|>", "<|flush|>"}:
        exceptions.add("<|end|>")
    if "<|tool_response>" in ends:
        exceptions.add("</s>")
    return exceptions & ends
