"""The `tokenizer.*` keys of an imported model: the file as it is, and what GGUF says beside it.

GGUF's own tables (texts, types, merges or scores) are derived, so that other programs read the file
too; here `tokenizer.huggingface.json` is what cuts texts. Ids of special tokens come from
`tokenizer_config.json`, then `config.json`; the ids that end a generation also from
`generation_config.json`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from converters.errors import MalformedFile, Unsupported
from converters.gguf import Value
from converters.gguf_types import ValueType
from converters.gguf_writer import TypedValue
from converters.imports.config import Config
from converters.imports.folder import TOKENIZER, Json, ModelFiles
from converters.imports.pre_tokenizers import UNKNOWN, pre_tokenizer_name
from converters.tokenizers.kept_file import FILE_KEY
from converters.tokenizers.tokenizer_file import TokenizerFile, read_tokenizer
from converters.tokenizers.vocabulary import TokenType

_SPACE = "\u2581"
_CONTINUATION = "##"
# GGUF's word → those of `tokenizer_config.json` and `config.json`.
_ROLES = {
    "bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "seperator": "sep_token",
    "padding": "pad_token", "cls": "cls_token", "mask": "mask_token",
}  # fmt: skip
_IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}

Keys = dict[str, TypedValue]


def vocabulary_keys(files: ModelFiles, config: Config, rows: int) -> tuple[Keys, tuple[str, ...]]:
    """The keys, and notes. `rows` of the embedding table: no id may lie beyond.

    Raises MalformedFile, Unsupported.
    """
    text = files.text(TOKENIZER)
    if not text:
        raise Unsupported(
            f"the folder has no {TOKENIZER}; a tokenizer.model alone is not imported: open the model"
            " once with transformers and save it, or take a GGUF"
        )
    tokenizer = read_tokenizer(text)
    _require_rows(tokenizer, rows)
    kind, pre, notes = _kind(tokenizer)
    keys: Keys = {
        FILE_KEY: TypedValue(ValueType.STRING, text),
        "tokenizer.ggml.model": TypedValue(ValueType.STRING, kind),
        "tokenizer.ggml.pre": TypedValue(ValueType.STRING, pre),
    }
    keys |= _tables(tokenizer, kind, rows)
    keys |= _special_ids(tokenizer, files, config, rows)
    keys |= _framing(tokenizer, files.json("tokenizer_config.json"), kind)
    keys |= _templates(files)
    return keys, notes


def _require_rows(tokenizer: TokenizerFile, rows: int) -> None:
    """Added tokens beyond the table are left out when the file is used; pieces cannot be."""
    beyond = [index for index in tokenizer.pieces if index >= rows]
    if beyond:
        raise MalformedFile(
            f"{TOKENIZER} has the id {min(beyond)}, the embedding table only {rows} rows"
        )


def _kind(tokenizer: TokenizerFile) -> tuple[str, str, tuple[str, ...]]:
    """GGUF's words for the model and the pre-tokenizer, and notes."""
    if tokenizer.kind == "WordPiece":
        return "bert", UNKNOWN, ()
    if tokenizer.kind == "Unigram":
        return "t5", UNKNOWN, ()
    if tokenizer.has_byte_fallback:
        return "llama", UNKNOWN, ()
    pre = pre_tokenizer_name(tokenizer.pre_tokenizer, ignores_merges=tokenizer.ignores_merges)
    if pre:
        return "gpt2", pre, ()
    note = "GGUF has no name for how this model cuts words: other programs may cut them differently"
    return "gpt2", UNKNOWN, (note,)


# ---- tables ----


def _tables(tokenizer: TokenizerFile, kind: str, rows: int) -> Keys:
    texts = [_piece(tokenizer, kind, index) for index in range(rows)]
    types = [_type(tokenizer, kind, index) for index in range(rows)]
    keys: Keys = {
        "tokenizer.ggml.tokens": TypedValue(ValueType.STRING, _distinct(texts)),
        "tokenizer.ggml.token_type": TypedValue(ValueType.INT32, np.array(types, np.int32)),
    }
    if kind == "gpt2":
        merges = [f"{first} {second}" for first, second in tokenizer.merges]
        keys["tokenizer.ggml.merges"] = TypedValue(ValueType.STRING, merges)
    if kind in ("llama", "t5"):
        scores = _merge_scores(tokenizer) if kind == "llama" else tokenizer.scores
        listed = np.array([scores.get(index, 0.0) for index in range(rows)], np.float32)
        keys["tokenizer.ggml.scores"] = TypedValue(ValueType.FLOAT32, listed)
    return keys


def _piece(tokenizer: TokenizerFile, kind: str, index: int) -> str:
    """WordPiece in GGUF marks the beginnings of words instead of the continuations."""
    if index in tokenizer.added:
        return tokenizer.added[index].content
    piece = tokenizer.pieces.get(index)
    if piece is None:
        return f"[PAD{index}]"
    if kind != "bert" or (piece.startswith("[") and piece.endswith("]")):
        return piece
    if piece.startswith(_CONTINUATION):
        return piece.removeprefix(_CONTINUATION)
    return _SPACE + piece


def _type(tokenizer: TokenizerFile, kind: str, index: int) -> int:
    added = tokenizer.added.get(index)
    piece = added.content if added else tokenizer.pieces.get(index)
    if piece is None:
        return TokenType.UNUSED
    if piece and kind != "gpt2" and piece == tokenizer.unknown:
        return TokenType.UNKNOWN
    if added:
        return TokenType.CONTROL if added.special else TokenType.USER_DEFINED
    if kind == "llama" and len(piece) == 6 and piece.startswith("<0x"):
        return TokenType.BYTE
    return TokenType.NORMAL


def _distinct(texts: list[str]) -> list[str]:
    """A text that two ids have (an added token that is a piece too) stays with the first."""
    seen: set[str] = set()
    found: list[str] = []
    for index, text in enumerate(texts):
        found.append(f"[PAD{index}]" if text in seen else text)
        seen.add(text)
    return found


def _merge_scores(tokenizer: TokenizerFile) -> dict[int, float]:
    """The earlier a piece is made, the better its score; pieces that no merge makes come last."""
    ranks: dict[str, int] = {}
    for first, second in tokenizer.merges:
        ranks.setdefault(first + second, len(ranks))
    worst = len(ranks)
    return {
        index: 0.0 if index in tokenizer.added else -float(ranks.get(piece, worst))
        for index, piece in tokenizer.pieces.items()
    }


# ---- special tokens ----


def _special_ids(tokenizer: TokenizerFile, files: ModelFiles, config: Config, rows: int) -> Keys:
    named = files.json("tokenizer_config.json")
    found: dict[str, int] = {}
    for role, key in _ROLES.items():
        if text := _content(named.get(key)):
            found[role] = tokenizer.id_of(text)
    for role, key in _IDS.items():
        listed = config.counts(key)
        if listed and found.get(role, -1) < 0:
            found[role] = listed[0]
    if tokenizer.unknown and found.get("unknown", -1) < 0:
        found["unknown"] = tokenizer.id_of(tokenizer.unknown)
    keys: Keys = {
        f"tokenizer.ggml.{role}_token_id": TypedValue(ValueType.UINT32, index)
        for role, index in found.items()
        if 0 <= index < rows
    }
    ends = Config(files.json("generation_config.json"), "generation_config.json").counts(
        "eos_token_id"
    )
    ends = sorted({*ends, *config.counts("eos_token_id"), found.get("eos", -1)} - {-1})
    ends = [index for index in ends if index < rows]
    if len(ends) > 1:
        key = "tokenizer.ggml.eos_token_ids"
        keys[key] = TypedValue(ValueType.INT32, np.array(ends, np.int32))
    return keys


def _content(token: Any) -> str:
    """A special token is a text, or an object with one."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _framing(tokenizer: TokenizerFile, named: Json, kind: str) -> Keys:
    """Whether a text gets a beginning and an end, and a space in front."""
    before, after = _template(tokenizer.post_processor)
    adds = {"bos": before, "eos": after}
    keys: Keys = {}
    for role, is_added in adds.items():
        said = named.get(f"add_{role}_token")
        value = said if isinstance(said, bool) else is_added
        keys[f"tokenizer.ggml.add_{role}_token"] = TypedValue(ValueType.BOOL, value)
    if kind in ("llama", "t5"):
        has_space = _has_prefix_space(tokenizer.normalizer, tokenizer.pre_tokenizer)
        keys["tokenizer.ggml.add_space_prefix"] = TypedValue(ValueType.BOOL, has_space)
    if kind == "bert":
        lowers = _normalizer_flag(tokenizer.normalizer, "lowercase")
        keys["tokenizer.ggml.normalizer.lowercase"] = TypedValue(ValueType.BOOL, lowers)
    return keys


def _template(processor: Any) -> tuple[bool, bool]:
    """Whether a single text gets a special token before it, and after it."""
    if not isinstance(processor, dict):
        return False, False
    if processor.get("type") in ("BertProcessing", "RobertaProcessing"):
        return True, True
    steps = processor.get("processors")
    for step in steps if isinstance(steps, list) else []:
        if any(found := _template(step)):
            return found
    single = processor.get("single")
    if not isinstance(single, list) or not single:
        return False, False
    return "SpecialToken" in single[0], "SpecialToken" in single[-1]


def _has_prefix_space(*parts: Any) -> bool:
    for part in parts:
        for step in _steps(part):
            if step.get("type") == "Prepend":
                return True
            if step.get("type") == "Metaspace":
                return step.get("prepend_scheme", "always") != "never"
    return False


def _normalizer_flag(normalizer: Any, key: str) -> bool:
    steps = _steps(normalizer)
    is_set = any(bool(step.get(key)) for step in steps)
    return is_set or (key == "lowercase" and any(s.get("type") == "Lowercase" for s in steps))


def _steps(part: Any) -> list[Json]:
    """The step itself, and those in a sequence, one level deep."""
    if not isinstance(part, dict):
        return []
    inner = [*(part.get("normalizers") or []), *(part.get("pretokenizers") or [])]
    return [part, *(step for step in inner if isinstance(step, dict))]


# ---- chat template ----


def _templates(files: ModelFiles) -> Keys:
    """The file of its own wins over the configuration, whose list has names."""
    listed = files.json("tokenizer_config.json").get("chat_template")
    own = files.text("chat_template.jinja") or _content_of_json(files)
    found: dict[str, str] = {}
    if isinstance(listed, str):
        found["default"] = listed
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("template"), str):
            found[str(entry.get("name", ""))[:64]] = entry["template"]
    if own:
        found["default"] = own
    keys: Keys = {}
    named = sorted(name for name in found if name and name != "default")
    if "default" in found:
        keys["tokenizer.chat_template"] = TypedValue(ValueType.STRING, found["default"])
    for name in named:
        keys[f"tokenizer.chat_template.{name}"] = TypedValue(ValueType.STRING, found[name])
    if named:
        names: Value = named
        keys["tokenizer.chat_templates"] = TypedValue(ValueType.STRING, names)
    return keys


def _content_of_json(files: ModelFiles) -> str:
    text = files.json("chat_template.json").get("chat_template")
    return text if isinstance(text, str) else ""
