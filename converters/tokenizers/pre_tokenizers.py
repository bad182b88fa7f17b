"""The regular expressions that cut a text into words before a byte-level BPE, by `tokenizer.ggml.pre`.

Each is the model's own, applied one after the other, each match a word and each gap between
matches too. They equal llama.cpp's cuts, but where llama.cpp approximates and they follow the model:
`tekken`, `gpt-4o` and their kin (there marks are cut off their letters, and letters beyond ASCII are
of both cases), `kimi-k2` (there letters of both cases make one word), `afmoe` (there the spaces
before a number are cut apart), `deepseek-coder` and `deepseek-llm` (there wide spaces are not in the
range of characters they lie in, and letters newer than the model are none).
No Unicode normalisation is done, as in llama.cpp: what comes in can come out unchanged.
"""

from __future__ import annotations

import msgspec

_ENGLISH = "'s|'t|'re|'ve|'m|'ll|'d"
_ENGLISH_ANY_CASE = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_MARKS = r" ?[^\s\p{L}\p{N}]+"

_GPT2 = rf"{_ENGLISH}| ?\p{{L}}+| ?\p{{N}}+|{_MARKS}|\s+(?!\S)|\s+"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = rf"{_ENGLISH_ANY_CASE}|{_LETTERS}|\p{{N}}{{1,3}}|{_MARKS}[\r\n]*|{_SPACES}"
_QWEN2 = rf"{_ENGLISH_ANY_CASE}|{_LETTERS}|\p{{N}}|{_MARKS}[\r\n]*|{_SPACES}"
_QWEN35 = (
    rf"{_ENGLISH_ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_SEED_CODER = rf"{_ENGLISH_ANY_CASE}|{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_BAILING = (
    rf"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|{_LETTERS}|\p{{N}}|{_MARKS}[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_MINICPM5 = rf"{_ENGLISH_ANY_CASE}|{_LETTERS}|\p{{N}}+|{_MARKS}[\r\n]*|{_SPACES}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}|{_MARKS}[\r\n/]*|{_SPACES}"
_GPT4O = (
    rf"{_LEAD}{_UPPER}*{_LOWER}+{_ENGLISH_ANY_CASE}?|{_LEAD}{_UPPER}+{_LOWER}*{_ENGLISH_ANY_CASE}?"
    rf"|\p{{N}}{{1,3}}|{_MARKS}[\r\n/]*|{_SPACES}"
)
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_HAN_SCRIPT = r"\p{Han}"
_UPPER_K2, _LOWER_K2 = (rf"[{letters[1:-1]}&&[^\p{{Han}}]]" for letters in (_UPPER, _LOWER))
_KIMI_K2 = (
    rf"{_HAN_SCRIPT}+|{_LEAD}{_UPPER_K2}*{_LOWER_K2}+{_ENGLISH_ANY_CASE}?"
    rf"|{_LEAD}{_UPPER_K2}+{_LOWER_K2}*{_ENGLISH_ANY_CASE}?|\p{{N}}{{1,3}}|{_MARKS}[\r\n]*|{_SPACES}"
)
_UFAKZEKA = rf"{_LETTERS}|\p{{N}}|{_MARKS}[\r\n]*|{_SPACES}"
_EXAONE_MOE = (
    rf"{_ENGLISH_ANY_CASE}|{_LEAD}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    rf"|{_MARKS}[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
# Groups of three digits, counted from the last.
_THOUSANDS = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_BEFORE_THOUSANDS = "(?=(?:[0-9]{3})+(?![0-9]))"
# Letters of two cases, without those of Georgian, which were of none when the model was made.
_CASED = r"\s?[\p{Lu}\p{Ll}\p{Lt}&&[^\x{10C7}\x{10CD}\x{10D0}-\x{10FF}]]+"
_WIDE_MARKS = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_EAST_ASIAN = (
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
    "\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af"
    "\u1100-\u11ff]+"
)
_BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+"
_DIGIT = r"\p{N}"
_HAN = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_HAN_CODER = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"


class PreTokenizer(msgspec.Struct, frozen=True):
    """`ignores_merges`: a word that is a token is taken whole. `adds_bos` where no key says."""

    patterns: tuple[str, ...]
    ignores_merges: bool = False
    adds_bos: bool = False


_DEFAULT = PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))
_GPT2_LIKE = PreTokenizer((_GPT2,))
_STARCODER_LIKE = PreTokenizer((_DIGIT, _GPT2))
_LLAMA3_LIKE = PreTokenizer((_LLAMA3,), ignores_merges=True, adds_bos=True)
_QWEN2_LIKE = PreTokenizer((_QWEN2,))
_DEEPSEEK3_LIKE = PreTokenizer((r"\p{N}{1,3}", _HAN, _DEEPSEEK3))

_FAMILIES = (
    (_DEFAULT, "default"),
    (_GPT2_LIKE, "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum"),
    (
        _GPT2_LIKE,
        "modern-bert mpt olmo jais trillion granite-docling exaone4 jina-v1-en jina-v2-code roberta-bpe",
    ),
    (
        _LLAMA3_LIKE,
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    ),
    (PreTokenizer((_LLAMA3,)), "dbrx smaug-bpe chatglm-bpe glm4"),
    (
        _QWEN2_LIKE,
        "qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 megrez hunyuan solar-open grok-2",
    ),
    (PreTokenizer((_QWEN35,)), "qwen35"),
    (_STARCODER_LIKE, "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2"),
    (PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")), "falcon"),
    (PreTokenizer((_TEKKEN,), ignores_merges=True, adds_bos=True), "tekken"),
    (PreTokenizer((_GPT4O,)), "gpt-4o llama4 kanana2 talkie minimax-m2"),
    (_DEEPSEEK3_LIKE, "deepseek-v3 hunyuan-dense hy_v4 joyai-llm"),
    (
        PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_CODER, _DIGIT)),
        "deepseek-coder",
    ),
    (
        PreTokenizer((r"[\r\n]", _CASED, _WIDE_MARKS, r"\s+$", _HAN_CODER, r"\p{N}+")),
        "deepseek-llm",
    ),
    (PreTokenizer((_THOUSANDS, _EAST_ASIAN, _DEEPSEEK3)), "afmoe"),
    (PreTokenizer((r"\p{N}+", _BEFORE_THOUSANDS)), "superbpe"),
    (PreTokenizer((_KIMI_K2,)), "kimi-k2"),
    (PreTokenizer((_UFAKZEKA,)), "ufakzeka"),
    (PreTokenizer((_EXAONE_MOE,)), "exaone-moe"),
    (PreTokenizer((r"[^\n]+|\n+", _QWEN2)), "laguna"),
    (PreTokenizer((_BLOOM,)), "poro-chat bloom gpt3-finnish"),
    (PreTokenizer((_BLOOM, _DIGIT)), "viking"),
    (PreTokenizer((_SEED_CODER,)), "seed-coder"),
    (PreTokenizer((_BAILING,)), "bailingmoe bailingmoe2 llada-moe"),
    (PreTokenizer((r"\p{N}{1,3}", _MINICPM5), ignores_merges=True), "minicpm5"),
)
PRE_TOKENIZERS = {name: rule for rule, names in _FAMILIES for name in names.split()}
