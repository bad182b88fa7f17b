"""Which ids begin, end and pad a text, and which end a generation. Pure decisions on a vocabulary.

The rules and defaults are llama.cpp's, with one of its defaults left out: a byte-level vocabulary
without the keys has no beginning or end here, where llama.cpp takes id 11.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from converters.artifact import SpecialTokens
from converters.errors import MalformedFile
from converters.gguf import Value, flag_value, integer_value
from converters.tokenizers.vocabulary import (
    END_TEXTS,
    FILL_TEXTS,
    Vocabulary,
    texts_that_do_not_end,
)

_PREFIX = "tokenizer.ggml."
# What a kind of tokenizer has where the file does not say.
SENTENCEPIECE_IDS = {"bos": 1, "eos": 2, "unknown": 0}
UNIGRAM_IDS = {"eos": 1, "unknown": 2, "padding": 0}
_WORD_PIECE_IDS = {"bos": 101, "seperator": 102, "unknown": 100, "padding": 0}


def plan_special_tokens(
    vocabulary: Vocabulary,
    metadata: dict[str, Value],
    *,
    defaults: Mapping[str, int],
    adds_bos: bool,
    adds_space: bool,
    adds_eos: bool = False,
) -> SpecialTokens:
    """`defaults` and the flags hold where the file has no key. Raises MalformedFile."""
    bos = _token_id(vocabulary, metadata, "bos", defaults)
    eos = _token_id(vocabulary, metadata, "eos", defaults)
    add_bos = flag_value(metadata, f"{_PREFIX}add_bos_token", default=adds_bos)
    add_eos = flag_value(metadata, f"{_PREFIX}add_eos_token", default=adds_eos)
    return SpecialTokens(
        bos_id=bos,
        eos_id=eos,
        unknown_id=_token_id(vocabulary, metadata, "unknown", defaults),
        padding_id=_token_id(vocabulary, metadata, "padding", defaults),
        end_ids=_end_ids(vocabulary, metadata, eos),
        add_bos=add_bos and bos >= 0,
        add_eos=add_eos and eos >= 0,
        add_space_prefix=adds_space,
    )


def plan_word_piece_tokens(vocabulary: Vocabulary, metadata: dict[str, Value]) -> SpecialTokens:
    """Every text is framed by [CLS], here the beginning, and [SEP], here the end, whatever the flags.

    Raises MalformedFile where the vocabulary has none. `seperator` is how GGUF spells it.
    """
    first = _token_id(vocabulary, metadata, "cls", _WORD_PIECE_IDS)
    first = first if first >= 0 else _WORD_PIECE_IDS["bos"]
    special = plan_special_tokens(
        vocabulary,
        metadata,
        defaults={**_WORD_PIECE_IDS, "bos": first},
        adds_bos=True,
        adds_space=False,
    )
    last = _token_id(vocabulary, metadata, "seperator", _WORD_PIECE_IDS)
    if special.bos_id < 0 or last < 0:
        raise MalformedFile("the vocabulary has no tokens to frame a text with")
    return msgspec.structs.replace(special, eos_id=last, add_bos=True, add_eos=True)


def _token_id(
    vocabulary: Vocabulary, metadata: dict[str, Value], role: str, defaults: Mapping[str, int]
) -> int:
    """An id outside the vocabulary, in the file or by default, is no id, as in llama.cpp."""
    default = defaults.get(role, -1)
    for candidate in (integer_value(metadata, f"{_PREFIX}{role}_token_id", default), default):
        if 0 <= candidate < len(vocabulary.texts):
            return candidate
    return -1


def _end_ids(vocabulary: Vocabulary, metadata: dict[str, Value], eos: int) -> tuple[int, ...]:
    found = {text for text in END_TEXTS if text in vocabulary.ids}
    ids = {vocabulary.ids[text] for text in found}
    ids |= {_fill_id(vocabulary, metadata, role) for role in ("fim_pad", "fim_rep", "fim_sep")}
    ids -= {vocabulary.ids[text] for text in texts_that_do_not_end(found)}
    ids |= {eos, *(_token_id(vocabulary, metadata, role, {}) for role in ("eot", "eom"))}
    ids.update(_listed_ends(vocabulary, metadata))
    return tuple(sorted(ids - {-1}))


def _fill_id(vocabulary: Vocabulary, metadata: dict[str, Value], role: str) -> int:
    given = _token_id(vocabulary, metadata, role, {})
    return given if given >= 0 else vocabulary.id_of(*FILL_TEXTS[role])


def _listed_ends(vocabulary: Vocabulary, metadata: dict[str, Value]) -> list[int]:
    """`eos_token_ids` is written by Ollama's own converter."""
    listed = metadata.get(f"{_PREFIX}eos_token_ids")
    if listed is None:
        return []
    if not isinstance(listed, np.ndarray) or not np.issubdtype(listed.dtype, np.integer):
        raise MalformedFile("tokenizer.ggml.eos_token_ids is not a list of integers")
    return [token_id for token_id in listed.tolist() if 0 <= token_id < len(vocabulary.texts)]
