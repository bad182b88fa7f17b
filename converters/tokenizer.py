"""GGUF metadata to `tokenizer.json` and the special ids. Cuts texts as llama.cpp does.

Kinds by `tokenizer.ggml.model`: "llama" and "gpt2" here; any other, and a pre-tokenizer that is not
in the table, is refused by name. Not a word is run or rendered: the chat template is not its business.
"""

from __future__ import annotations

import msgspec

from converters.artifact import SpecialTokens
from converters.errors import MalformedFile, Unsupported
from converters.gguf import Value, flag_value, text_value
from converters.tokenizers.byte_level_bpe import byte_level_bpe_json
from converters.tokenizers.pre_tokenizers import PRE_TOKENIZERS
from converters.tokenizers.scored_bpe import scored_bpe_json, stripping_ids
from converters.tokenizers.special_tokens import SENTENCEPIECE_IDS, plan_special_tokens
from converters.tokenizers.vocabulary import Vocabulary, read_vocabulary


class TokenizerFiles(msgspec.Struct, frozen=True):
    """`kind` and `pre` are what `tokenizer.ggml.model` and `.pre` say, or what stands for them."""

    tokenizer_json: bytes
    special: SpecialTokens
    kind: str
    pre: str
    warnings: tuple[str, ...] = ()


def build_tokenizer(metadata: dict[str, Value]) -> TokenizerFiles:
    """Raises MalformedFile, Unsupported."""
    kind = text_value(metadata, "tokenizer.ggml.model")
    if not kind:
        raise MalformedFile("tokenizer.ggml.model is missing")
    builder = _BUILDERS.get(kind)
    if builder is None:
        raise Unsupported(f"tokenizers of the kind {kind!r} are not supported")
    return builder(metadata, read_vocabulary(metadata))


def tokenizer_refusal(metadata: dict[str, Value]) -> str:
    """Why `build_tokenizer` would refuse the kind, cheaply; empty where it would not."""
    kind = text_value(metadata, "tokenizer.ggml.model")
    pre = text_value(metadata, "tokenizer.ggml.pre")
    if kind not in _BUILDERS:
        return f"tokenizers of the kind {kind!r} are not supported"
    if kind == "gpt2" and pre and pre not in PRE_TOKENIZERS:
        return _unknown_pre(pre)
    return ""


def _build_scored(metadata: dict[str, Value], vocabulary: Vocabulary) -> TokenizerFiles:
    adds_space = flag_value(metadata, "tokenizer.ggml.add_space_prefix", default=True)
    special = plan_special_tokens(
        vocabulary, metadata, defaults=SENTENCEPIECE_IDS, adds_bos=True, adds_space=adds_space
    )
    encoded, warnings = scored_bpe_json(
        vocabulary,
        adds_space=adds_space,
        stripping=stripping_ids(vocabulary, text_value(metadata, "general.name")),
        unknown_id=special.unknown_id,
    )
    return TokenizerFiles(encoded, special, "llama", "default", warnings)


def _build_byte_level(metadata: dict[str, Value], vocabulary: Vocabulary) -> TokenizerFiles:
    pre, metadata, pre_warnings = _pre_tokenizer_name(metadata, vocabulary)
    rule = PRE_TOKENIZERS.get(pre)
    if rule is None:
        raise Unsupported(_unknown_pre(pre))
    special = plan_special_tokens(
        vocabulary, metadata, defaults={}, adds_bos=rule.adds_bos, adds_space=False
    )
    stripping = stripping_ids(vocabulary, text_value(metadata, "general.name"))
    encoded, warnings = byte_level_bpe_json(vocabulary, metadata, rule, stripping=stripping)
    return TokenizerFiles(encoded, special, "gpt2", pre, pre_warnings + warnings)


def _unknown_pre(pre: str) -> str:
    return f"the pre-tokenizer {pre!r} is not supported"


def _pre_tokenizer_name(
    metadata: dict[str, Value], vocabulary: Vocabulary
) -> tuple[str, dict[str, Value], tuple[str, ...]]:
    """Early Llama 3 files name no pre-tokenizer and the wrong end: both are put right here."""
    pre = text_value(metadata, "tokenizer.ggml.pre")
    if pre:
        return pre, metadata, ()
    end_of_turn = vocabulary.id_of("<|eot_id|>")
    if end_of_turn < 0 or vocabulary.id_of("<|begin_of_text|>") < 0:
        return "default", metadata, ("the file names no pre-tokenizer: 'default' is used",)
    corrected = {**metadata, "tokenizer.ggml.eos_token_id": end_of_turn}
    return "llama-bpe", corrected, ("the file names no pre-tokenizer: it is Llama 3's",)


_BUILDERS = {"llama": _build_scored, "gpt2": _build_byte_level}
