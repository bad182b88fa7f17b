"""Tokenizers as `tokenizer.json` files, made by hand around what the library learns from a few lines."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tests.models.vocabularies import CONTROL_TOKENS, PRE_TOKENIZERS, SAMPLE, train_byte_level

Json = dict[str, Any]
VOCABULARY = 700


def _added(texts: list[str], first: int, special: bool = True) -> list[Json]:
    return [
        {
            "id": first + index,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": special,
        }
        for index, text in enumerate(texts)
    ]


def _file(model: Json, added: list[Json], **parts: Any) -> Json:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": parts.get("normalizer"),
        "pre_tokenizer": parts.get("pre_tokenizer"),
        "post_processor": parts.get("post_processor"),
        "decoder": parts.get("decoder"),
        "model": model,
    }


def _framed(before: str, after: str = "", ids: dict[str, int] | None = None) -> Json:
    single: list[Json] = [{"Sequence": {"id": "A", "type_id": 0}}]
    if before:
        single.insert(0, {"SpecialToken": {"id": before, "type_id": 0}})
    if after:
        single.append({"SpecialToken": {"id": after, "type_id": 0}})
    tokens = {
        text: {"id": text, "ids": [index], "tokens": [text]} for text, index in (ids or {}).items()
    }
    return {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": tokens}


def byte_level_file(pre: str) -> Json:
    """With `pre` "llama-bpe" a beginning is added, as Llama 3's file does."""
    control = CONTROL_TOKENS[pre]
    tail = ["<tool_call>", "</tool_call>"]
    room = VOCABULARY - len(control) - len(tail) - 10  # ten rows without a token
    tokens, merges = train_byte_level(SAMPLE.splitlines(), pre, room)
    tokens = (tokens + [f"Ġpad{index}" for index in range(room)])[:room]
    model: Json = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": pre == "llama-bpe",
        "vocab": {token: index for index, token in enumerate(tokens)},
        "merges": merges,
    }
    added = _added(tail, room, special=False) + _added(control, room + len(tail))
    level: Json = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": pre == "gpt-2",
    }
    cut = {
        "type": "Split",
        "pattern": {"Regex": PRE_TOKENIZERS[pre]},
        "behavior": "Isolated",
        "invert": False,
    }
    steps: Json = {"type": "Sequence", "pretokenizers": [cut, level]}
    bos = {control[0]: room + len(tail)}
    return _file(
        model,
        added,
        normalizer={"type": "NFC"} if pre == "qwen2" else None,
        pre_tokenizer=level if pre == "gpt-2" else steps,
        post_processor=_framed(control[0], ids=bos) if pre == "llama-bpe" else level,
        decoder=level,
    )


def scored_file() -> Json:
    """As Llama 2's and Gemma's: pieces with a mark for a space, bytes where no piece fits."""
    head = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tail = ["<|im_start|>", "<|im_end|>"]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", prepend_scheme="always", split=True)
    room = VOCABULARY - len(head) - len(tail)
    trainer = trainers.BpeTrainer(vocab_size=room, show_progress=False)
    trained.train_from_iterator(SAMPLE.splitlines(), trainer)
    pieces = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    merges = json.loads(trained.to_str())["model"]["merges"]
    pieces += [f"\u2581pad{index}" for index in range(room - len(pieces))]
    vocabulary = {piece: index for index, piece in enumerate(head + pieces + tail)}
    model: Json = {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": merges,
    }
    mark: Json = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    space: Json = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    strip: Json = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return _file(
        model,
        _added(head[:3], 0) + _added(tail, VOCABULARY - 2),
        normalizer={
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, mark],
        },
        post_processor=_framed("<s>", ids={"<s>": 1}),
        decoder={
            "type": "Sequence",
            "decoders": [space, {"type": "ByteFallback"}, {"type": "Fuse"}, strip],
        },
    )


def word_piece_file() -> Json:
    head = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]"]
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=head, show_progress=False
    )
    trained.train_from_iterator(SAMPLE.lower().splitlines(), trainer)
    model = json.loads(trained.to_str())["model"]
    vocabulary = model["vocab"]
    for index in range(len(vocabulary), VOCABULARY):
        vocabulary[f"pad{index}"] = index
    frame = _framed("[CLS]", "[SEP]", {"[CLS]": 2, "[SEP]": 3})
    file = _file(
        model,
        _added(head[:5], 0),
        normalizer={
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=frame,
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )
    file["truncation"] = {
        "direction": "Right",
        "max_length": 8,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    file["padding"] = {
        "strategy": {"Fixed": 8},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    return file


def unigram_file() -> Json:
    """As XLM-RoBERTa's, without a table of characters."""
    head = ["<s>", "<pad>", "</s>", "<unk>"]
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", prepend_scheme="always", split=True)
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=head, unk_token="<unk>", show_progress=False
    )
    trained.train_from_iterator(SAMPLE.splitlines(), trainer)
    model = json.loads(trained.to_str())["model"]
    worst = min(score for _, score in model["vocab"])
    count = VOCABULARY - 1 - len(model["vocab"])
    model["vocab"] += [[f"\u2581pad{index}", worst - 1] for index in range(count)]
    space: Json = {
        "type": "Metaspace",
        "replacement": "\u2581",
        "prepend_scheme": "always",
        "split": True,
    }
    mask = _added(["<mask>"], VOCABULARY - 1)
    mask[0]["lstrip"] = True
    return _file(
        model,
        _added(head, 0) + mask,
        pre_tokenizer=space,
        post_processor=_framed("<s>", "</s>", {"<s>": 0, "</s>": 2}),
        decoder=space,
    )
