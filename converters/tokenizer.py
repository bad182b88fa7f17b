"""GGUF metadata to `tokenizer.json` and the special ids. Cuts texts as llama.cpp does.

Kinds by `tokenizer.ggml.model`: "llama", "gpt2", "bert", "t5"; any other, and a pre-tokenizer that
is not in the table, is refused by name. A `tokenizer.json` that the file carries as it is comes before
what its tables say. Not a word is run or rendered: the chat template is not its business.
"""

from __future__ import annotations

import msgspec

from converters.artifact import SpecialTokens
from converters.errors import MalformedFile, Unsupported
from converters.gguf import Value, flag_value, text_value
from converters.tokenizers.byte_level_bpe import byte_level_bpe_json
from converters.tokenizers.character_map import read_character_map
from converters.tokenizers.kept_file import FILE_KEY, agrees, kept_json
from converters.tokenizers.pre_tokenizers import PRE_TOKENIZERS
from converters.tokenizers.scored_bpe import scored_bpe_json, stripping_ids
from converters.tokenizers.special_tokens import (
    SENTENCEPIECE_IDS,
    UNIGRAM_IDS,
    plan_special_tokens,
    plan_word_piece_tokens,
)
from converters.tokenizers.unigram import unigram_json
from converters.tokenizers.vocabulary import Vocabulary, read_vocabulary
from converters.tokenizers.word_piece import word_piece_json

# Their "<mask>" swallows the white space before it; the file says so nowhere.
_MASK_ARCHITECTURES = frozenset({"nomic-bert-moe", "jina-bert-v3"})
_ADDS_SPACE = "tokenizer.ggml.add_space_prefix"
_MERGES_SPACES = "tokenizer.ggml.remove_extra_whitespaces"
_MASK_PRE_TOKENIZERS = frozenset({"jina-v2-de", "jina-v2-es", "jina-v2-code"})


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
    vocabulary = read_vocabulary(metadata)
    kept = text_value(metadata, FILE_KEY)
    if not kept:
        return builder(metadata, vocabulary)
    if agrees(kept, vocabulary, kind):
        return _build_kept(kept, kind, metadata, vocabulary)
    built = builder(metadata, vocabulary)
    warning = f"{FILE_KEY} is of another vocabulary and is not used"
    return msgspec.structs.replace(built, warnings=(*built.warnings, warning))


def tokenizer_refusal(metadata: dict[str, Value]) -> str:
    """Why `build_tokenizer` would refuse the kind, cheaply; empty where it would not."""
    kind = text_value(metadata, "tokenizer.ggml.model")
    pre = text_value(metadata, "tokenizer.ggml.pre")
    if kind not in _BUILDERS:
        return f"tokenizers of the kind {kind!r} are not supported"
    if kind == "gpt2" and pre and pre not in PRE_TOKENIZERS and FILE_KEY not in metadata:
        return _unknown_pre(pre)
    return ""


def _build_kept(
    text: str, kind: str, metadata: dict[str, Value], vocabulary: Vocabulary
) -> TokenizerFiles:
    pre = text_value(metadata, "tokenizer.ggml.pre") or "default"
    special = _SPECIAL_TOKENS[kind](metadata, vocabulary)
    return TokenizerFiles(kept_json(text, vocabulary), special, kind, pre)


def _build_scored(metadata: dict[str, Value], vocabulary: Vocabulary) -> TokenizerFiles:
    special = _scored_special(metadata, vocabulary)
    encoded, warnings = scored_bpe_json(
        vocabulary,
        adds_space=special.add_space_prefix,
        stripping=stripping_ids(vocabulary, text_value(metadata, "general.name")),
        unknown_id=special.unknown_id,
    )
    return TokenizerFiles(encoded, special, "llama", "default", warnings)


def _scored_special(metadata: dict[str, Value], vocabulary: Vocabulary) -> SpecialTokens:
    adds_space = flag_value(metadata, "tokenizer.ggml.add_space_prefix", default=True)
    return plan_special_tokens(
        vocabulary, metadata, defaults=SENTENCEPIECE_IDS, adds_bos=True, adds_space=adds_space
    )


def _build_byte_level(metadata: dict[str, Value], vocabulary: Vocabulary) -> TokenizerFiles:
    pre, metadata, pre_warnings = _pre_tokenizer_name(metadata, vocabulary)
    rule = PRE_TOKENIZERS.get(pre)
    if rule is None:
        raise Unsupported(_unknown_pre(pre))
    stripping = stripping_ids(vocabulary, text_value(metadata, "general.name"))
    encoded, warnings = byte_level_bpe_json(
        vocabulary,
        metadata,
        rule,
        stripping=stripping,
        lstripping=_mask_ids(vocabulary, is_mask_spaced=pre in _MASK_PRE_TOKENIZERS),
    )
    special = _byte_level_special(metadata, vocabulary)
    return TokenizerFiles(encoded, special, "gpt2", pre, pre_warnings + warnings)


def _byte_level_special(metadata: dict[str, Value], vocabulary: Vocabulary) -> SpecialTokens:
    pre, metadata, _ = _pre_tokenizer_name(metadata, vocabulary)
    rule = PRE_TOKENIZERS.get(pre)
    return plan_special_tokens(
        vocabulary,
        metadata,
        defaults={},
        adds_bos=rule.adds_bos if rule else False,
        adds_space=False,
    )


def _build_word_piece(metadata: dict[str, Value], vocabulary: Vocabulary) -> TokenizerFiles:
    special = _word_piece_special(metadata, vocabulary)
    lowers = flag_value(metadata, "tokenizer.ggml.normalizer.lowercase", default=True)
    accents = flag_value(metadata, "tokenizer.ggml.normalizer.strip_accents", default=lowers)
    encoded = word_piece_json(
        vocabulary, unknown_id=special.unknown_id, lowers=lowers, strips_accents=accents
    )
    return TokenizerFiles(encoded, special, "bert", "default")


def _word_piece_special(metadata: dict[str, Value], vocabulary: Vocabulary) -> SpecialTokens:
    return plan_word_piece_tokens(vocabulary, metadata)


def _build_unigram(metadata: dict[str, Value], vocabulary: Vocabulary) -> TokenizerFiles:
    special = _unigram_special(metadata, vocabulary)
    architecture = text_value(metadata, "general.architecture")
    encoded = unigram_json(
        vocabulary,
        character_map=read_character_map(metadata),
        adds_space=flag_value(metadata, _ADDS_SPACE, default=False),
        merges_spaces=flag_value(metadata, _MERGES_SPACES, default=False),
        unknown_id=special.unknown_id,
        lstripping=_mask_ids(vocabulary, is_mask_spaced=architecture in _MASK_ARCHITECTURES),
    )
    return TokenizerFiles(encoded, special, "t5", "default")


def _unigram_special(metadata: dict[str, Value], vocabulary: Vocabulary) -> SpecialTokens:
    adds_space = flag_value(metadata, _ADDS_SPACE, default=False)
    merges_spaces = flag_value(metadata, _MERGES_SPACES, default=False)
    return plan_special_tokens(
        vocabulary,
        metadata,
        defaults=UNIGRAM_IDS,
        adds_bos=False,
        adds_eos=True,
        adds_space=adds_space or merges_spaces,
    )


def _mask_ids(vocabulary: Vocabulary, *, is_mask_spaced: bool) -> frozenset[int]:
    return frozenset({vocabulary.id_of("<mask>")} - {-1} if is_mask_spaced else ())


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


_BUILDERS = {
    "llama": _build_scored,
    "gpt2": _build_byte_level,
    "bert": _build_word_piece,
    "t5": _build_unigram,
}
_SPECIAL_TOKENS = {
    "llama": _scored_special,
    "gpt2": _byte_level_special,
    "bert": _word_piece_special,
    "t5": _unigram_special,
}
