"""Two hand-made tokenizers as `tokenizer.json`: byte-level BPE, and SentencePiece with byte tokens."""

from __future__ import annotations

import json

from backends.text.tokenizer import Tokenizer
from converters.artifact import SpecialTokens

_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def _added(texts: dict[str, tuple[int, bool]]) -> list[dict[str, object]]:
    return [
        {"id": token_id, "content": text, "special": special, **_FLAGS}
        for text, (token_id, special) in texts.items()
    ]


def _model(vocabulary: dict[str, int], merges: list[str], byte_fallback: bool) -> dict[str, object]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>" if byte_fallback else None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": byte_fallback,
        "byte_fallback": byte_fallback,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": merges,
    }


def byte_characters() -> list[str]:
    """GPT-2's stand-ins, written down another way than the code under test does it."""
    shown = [chr(b) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174 else "" for b in range(256)]
    hidden = iter(range(256, 512))
    return [character or chr(next(hidden)) for character in shown]


def byte_level(**special: object) -> Tokenizer:
    """Ids 0-255 bytes, 256 "he", 257 "hel", 258 <s>, 259 </s>, 260 <tool> (not special)."""
    vocabulary = {character: value for value, character in enumerate(byte_characters())}
    vocabulary |= {"he": 256, "hel": 257, "<s>": 258, "</s>": 259, "<tool>": 260}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    added = {"<s>": (258, True), "</s>": (259, True), "<tool>": (260, False)}
    data = {
        "version": "1.0",
        "added_tokens": _added(added),
        "pre_tokenizer": {**level, "use_regex": False},
        "decoder": {**level, "use_regex": True},
        "model": _model(vocabulary, ["h e", "he l"], byte_fallback=False),
    }
    return Tokenizer(json.dumps(data).encode(), _special(258, 259, special))


def with_special(*marks: str) -> Tokenizer:
    """The byte-level one with `marks` as special ids from 261 on."""
    vocabulary = {character: value for value, character in enumerate(byte_characters())}
    vocabulary |= {"he": 256, "hel": 257, "<s>": 258, "</s>": 259}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    special = {mark: 261 + place for place, mark in enumerate(marks)}
    added = {text: (i, True) for text, i in ({"<s>": 258, "</s>": 259} | special).items()}
    data = {
        "version": "1.0",
        "added_tokens": _added(added),
        "pre_tokenizer": {**level, "use_regex": False},
        "decoder": {**level, "use_regex": True},
        "model": _model(vocabulary | special, ["h e", "he l"], byte_fallback=False),
    }
    return Tokenizer(json.dumps(data).encode(), _special(258, 259, {}))


def sentence_piece(**special: object) -> Tokenizer:
    """Ids 0 <unk>, 1 <s>, 2 </s>, 3-258 byte tokens, then single characters and some merges."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {f"<0x{value:02X}>": value + 3 for value in range(256)}
    for text in [*"▁abcdehlo", "▁h", "▁he", "▁a"]:
        vocabulary[text] = len(vocabulary)
    data = {
        "version": "1.0",
        "added_tokens": _added({"<unk>": (0, True), "<s>": (1, True), "</s>": (2, True)}),
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": _model(vocabulary, ["▁ h", "▁h e", "▁ a"], byte_fallback=True),
    }
    special.setdefault("add_space_prefix", True)
    return Tokenizer(json.dumps(data).encode(), _special(1, 2, special))


def _special(bos_id: int, eos_id: int, given: dict[str, object]) -> SpecialTokens:
    values = {"bos_id": bos_id, "eos_id": eos_id, "end_ids": (eos_id,), "add_bos": True}
    return SpecialTokens(**{**values, **given})  # type: ignore[arg-type]
