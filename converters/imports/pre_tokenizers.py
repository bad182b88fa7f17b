"""Which of GGUF's names a `tokenizer.json`'s way of cutting texts into words has.

Told from the structure of its pre-tokenizer: the regular expressions in it, in order, against those
that `converters.tokenizers.pre_tokenizers` gives each name. The file itself is what cuts texts here;
the name is for other programs that read the GGUF.
"""

from __future__ import annotations

from typing import Any

from converters.tokenizers.pre_tokenizers import PRE_TOKENIZERS

UNKNOWN = "default"
_DIGIT, _DIGITS = r"\p{N}", r"\p{N}+"
# Two spellings of the same: our table has the second.
_CONTRACTIONS = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
)
_PREFERRED = ("gpt-2", "llama-bpe", "qwen2")


def _by_patterns() -> dict[tuple[tuple[str, ...], bool], str]:
    found: dict[tuple[tuple[str, ...], bool], str] = {}
    names = [*_PREFERRED, *(name for name in PRE_TOKENIZERS if name not in _PREFERRED)]
    for name in names:
        rule = PRE_TOKENIZERS[name]
        found.setdefault((rule.patterns, rule.ignores_merges), name)
    return found


_NAMES = _by_patterns()
_GPT2 = PRE_TOKENIZERS["gpt-2"].patterns[0]


def pre_tokenizer_name(pre_tokenizer: Any, *, ignores_merges: bool) -> str:
    """Empty where no name stands for this structure."""
    patterns = _patterns(pre_tokenizer)
    if patterns is None:
        return ""
    for ignores in (ignores_merges, not ignores_merges):
        if name := _NAMES.get((patterns, ignores), ""):
            return name
    return ""


def _patterns(part: Any) -> tuple[str, ...] | None:
    """The expressions of one step and of those in it; None for a step that is none of these."""
    if not isinstance(part, dict):
        return None
    match part.get("type"):
        case "Sequence":
            return _all_patterns(part.get("pretokenizers"))
        case "ByteLevel":
            return (_GPT2,) if part.get("use_regex", True) else ()
        case "Digits":
            return (_DIGIT if part.get("individual_digits") else _DIGITS,)
        case "Split":
            return _split(part)
        case _:
            return None


def _all_patterns(steps: Any) -> tuple[str, ...] | None:
    found: list[str] = []
    for step in steps if isinstance(steps, list) else []:
        patterns = _patterns(step)
        if patterns is None:
            return None
        found += patterns
    return tuple(found)


def _split(part: dict[str, Any]) -> tuple[str, ...] | None:
    pattern = part.get("pattern")
    text = pattern.get("Regex") if isinstance(pattern, dict) else None
    is_plain = part.get("behavior") == "Isolated" and not part.get("invert")
    # What is removed, kept inverted, is cut at the same places.
    is_inverted = part.get("behavior") == "Removed" and bool(part.get("invert"))
    if not isinstance(text, str) or not (is_plain or is_inverted):
        return None
    return (text.replace(*_CONTRACTIONS),)
