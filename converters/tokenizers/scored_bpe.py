"""SentencePiece BPE ("llama" in GGUF): adjacent pieces merge by the score of what they make.

llama.cpp merges, among all neighbours that together are a token, those with the best score, the
leftmost first. `tokenizer.json` knows merges of two named tokens in a fixed order: every way to cut
a token into two tokens becomes one merge, ordered by the token's score. The two agree wherever no
two tokens that can be made have the same score; where some have, a warning says how many.
"""

from __future__ import annotations

from converters.errors import Unsupported
from converters.tokenizers.tokenizer_json import Json, bpe_model, encode_tokenizer
from converters.tokenizers.vocabulary import TokenType, Vocabulary

_SPACE = "\u2581"


def scored_bpe_json(
    vocabulary: Vocabulary, *, adds_space: bool, stripping: frozenset[int], unknown_id: int
) -> tuple[bytes, tuple[str, ...]]:
    """The file's bytes and warnings. Raises Unsupported on a vocabulary without byte tokens."""
    missing = [byte for byte in range(256) if f"<0x{byte:02X}>" not in vocabulary.ids]
    if missing:
        raise Unsupported(
            f"the vocabulary has no token for {len(missing)} of 256 bytes, <0x{missing[0]:02X}> first"
        )
    merges, ties = _merges_by_score(vocabulary)
    unknown = vocabulary.texts[unknown_id] if unknown_id >= 0 else None
    model = bpe_model(vocabulary, merges, unknown=unknown, byte_fallback=True)
    encoded = encode_tokenizer(
        vocabulary,
        model,
        _decoder(strips_space=adds_space),
        normalizer=_normalizer(adds_space=adds_space),
        stripping=stripping,
    )
    warning = f"{ties} tokens share their score with another: rare texts may be cut differently"
    return encoded, (warning,) if ties else ()


def _merges_by_score(vocabulary: Vocabulary) -> tuple[list[tuple[str, str]], int]:
    """All merges, best first, and how many tokens that merges make share their score."""
    ids = vocabulary.ids
    made: list[tuple[float, int, list[tuple[str, str]]]] = []
    for token_id, text in enumerate(vocabulary.texts):
        cuts = [
            (text[:cut], text[cut:])
            for cut in range(1, len(text))
            if text[:cut] in ids and text[cut:] in ids
        ]
        if cuts:
            made.append((-vocabulary.scores[token_id], token_id, cuts))
    made.sort(key=lambda entry: entry[:2])
    ties = len(made) - len({entry[0] for entry in made})
    return [pair for _, _, cuts in made for pair in cuts], ties


def _normalizer(*, adds_space: bool) -> Json:
    """A space goes before every stretch of text: at the start and after each special token."""
    steps: list[Json] = [{"type": "Prepend", "prepend": _SPACE}] if adds_space else []
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": _SPACE})
    return {"type": "Sequence", "normalizers": steps}


def _decoder(*, strips_space: bool) -> Json:
    steps: list[Json] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if strips_space:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def stripping_ids(vocabulary: Vocabulary, model_name: str) -> frozenset[int]:
    """Phi-3's special tokens swallow the white space after them; the file says so nowhere."""
    name = model_name.lower()
    if "phi-3" not in name and "phi3" not in name:
        return frozenset()
    special = {TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN}
    kept = {"<unk>", "<s>", "<|endoftext|>"}
    return frozenset(
        index
        for index, text in enumerate(vocabulary.texts)
        if vocabulary.types[index] in special and text not in kept
    )
