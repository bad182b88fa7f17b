"""Lines that tokenizers stumble over, the same on every run: scripts, runs, marks, code, markup."""

import random

_WORDS = [
    "hello", "Hello", "HELLO", "don't", "DON'T", "we'LL", "I'd've", "naïve", "Straße", "ﬁne",
    "İstanbul", "ÀÉÎ", "e\u0301", "a\u0308\u0323", "\u0301", "нагрузка", "Привет", "ёлка",
    "今天天气很好", "漢字", "ひらがな", "カタカナ", "한국어", "ᄒᆞᆫ", "العربية", "مرحبا", "שלום",
    "हिन्दी", "ไทย", "ქართული", "Ελληνικά", "🙂", "🚀🚀", "👩‍👩‍👧‍👦", "🇩🇪", "👍🏽", "❤️", "✓", "→", "𝒳𝓎",
    "1", "12", "123", "1234", "12345678", "3.14", "1,000,000", "٣٤٥", "Ⅷ", "½", "²", "0x1F",
    "def f(x):", "return x**2", "{'a': [1, 2]}", "</div>", "a->b", "i++;", "!=", "===", "&&",
    "http://a.b/c?d=e&f#g", "user@example.org", "C:\\dir\\file", "$100", "50%", "#tag", "`code`",
    "...", "…", "—", "“quoted”", "¿qué?", "!!!", "?!", "~~~", "___", "|a|b|", "^_^", "(x)", "<b>",
    "\u00a0", "\u2003", "\u3000", "\u200b", "\ufeff", "\u0085", "\u2028", "\u00ad", "\ue000",
    "\x00", "\x07", "\x7f", "\u0378", "\U000e0041", "\U0010ffff", "▁", "▁▁x", "Ġ", "<0x41>", "[INST]",
]  # fmt: skip
_SPACES = [
    " ",
    "  ",
    "   ",
    "    ",
    " " * 9,
    "\t",
    "\t\t",
    "\n",
    "\n\n",
    "\r\n",
    " \n",
    "\n ",
    "\r",
]


def hostile_lines(count: int, special: list[str], seed: int = 7) -> list[str]:
    """`count` lines of mixed scripts and spaces, one in four with special tokens in it."""
    chance = random.Random(seed)
    lines = ["", " ", "  ", "\n", " \n ", "a", " a", "a ", "'", "''s", *special]
    while len(lines) < count:
        words = _WORDS + special * 3 if chance.random() < 0.25 else _WORDS
        parts = []
        for _ in range(chance.randint(1, 12)):
            parts.append(chance.choice(words))
            if chance.random() < 0.75:
                parts.append(chance.choice(_SPACES))
        lines.append("".join(parts))
    return lines[:count]
