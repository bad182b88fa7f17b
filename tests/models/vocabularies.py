"""Small tokenizers for test models, trained in a moment on a few multilingual lines.

Two kinds: `llama` (SentencePiece style: pieces with scores, 256 byte tokens, U+2581 for a space) and
`gpt2` (byte-level BPE with merges, one of three pre-tokenizers). Owns the vocabulary and its GGUF
metadata; never touches weights. Every vocabulary has control tokens and a chat template.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass

from gguf import GGUFWriter
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
SPACE = "\u2581"
PRE_TOKENIZERS = {
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3_CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
CONTROL_TOKENS = {
    "llama-bpe": [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
    ],
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "gpt-2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
}
SAMPLE = """The lighthouse keeper's dog didn't bark when the ships came home; they'd seen it all before.
How many apples are in 3 boxes of 12? There are 36, and 1024 is 2 to the power of 10.
Grüße aus München: schöne Äpfel, süße Kirschen und ein großes Stück Käse für 4,50 Euro.
Où est la bibliothèque? L'été dernier, le garçon a mangé une crème brûlée près de l'église.
El niño pequeño comió mañana; ¿dónde está la estación? ¡Qué sorpresa!
Сегодня утром шёл дождь, а вечером над рекой появилась радуга.
今天天气很好，我们去公园散步吧。東京の空は青いです。오늘은 날씨가 좋아요.
def add(first, second):\n    return first + second  # sums two numbers\n
{"name": "Ada", "age": 36, "tags": ["mathematics", "engines"], "active": true}
One two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen.
A small fire in the hearth keeps the whole house warm, and the kettle sings above the embers.
🙂 🚀 ✓ → naïve café — “quoted text” … and the rest of the world turns slowly in the dark.
"""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's tables as GGUF stores them; ids are indices into `tokens`."""

    kind: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    bos: int
    eos: int
    eot: int
    adds_bos: bool
    chat_template: str

    def write(self, writer: GGUFWriter, chat_template: str | None = None) -> None:
        """Add every `tokenizer.*` key; `chat_template` "" leaves the template out."""
        writer.add_tokenizer_model(self.kind)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
            writer.add_unk_token_id(0)
        if self.merges:
            writer.add_token_merges(self.merges)
        writer.add_bos_token_id(self.bos)
        writer.add_eos_token_id(self.eos)
        writer.add_eot_token_id(self.eot)
        writer.add_add_bos_token(self.adds_bos)
        template = self.chat_template if chat_template is None else chat_template
        if template:
            writer.add_chat_template(template)


@functools.cache
def build_vocabulary(
    kind: str,
    pre: str = "llama-bpe",
    size: int = 700,
    control: tuple[str, ...] = (),
    merges: tuple[str, ...] = (),
) -> Vocabulary:
    """A vocabulary of exactly `size` tokens; beyond what training finds it is padded with words.

    `kind` "llama" (at least 600 tokens; `pre` is ignored) or "gpt2" (`pre` a key of
    `PRE_TOKENIZERS`). `merges` ("left right") are learnt too, `control` are more control tokens: the
    last ids. Raises ValueError for other kinds.
    """
    room = size - len(control) - len(merges)
    if kind == "llama":
        return _extended(_build_llama(room), control, merges)
    if kind == "gpt2" and pre in PRE_TOKENIZERS:
        return _extended(_build_gpt2(pre, room), control, merges)
    raise ValueError(f"no test vocabulary of kind {kind!r} with pre-tokenizer {pre!r}")


def _extended(found: Vocabulary, control: tuple[str, ...], merges: tuple[str, ...]) -> Vocabulary:
    merged = [merge.replace(" ", "") for merge in merges]
    more = len(merged) + len(control)
    return dataclasses.replace(
        found,
        tokens=[*found.tokens, *merged, *control],
        types=[*found.types, *[NORMAL] * len(merged), *[CONTROL] * len(control)],
        scores=found.scores and [*found.scores, *[0.0] * more],
        merges=[*found.merges, *merges],
    )


def _build_llama(size: int) -> Vocabulary:
    """Pieces scored by training rank, so that the best-scored merge is the earliest learnt."""
    head = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tail = ["<|im_start|>", "<|im_end|>"]
    room = size - len(head) - len(tail)
    pieces = _padded(_train_pieces(min(room, 1500)), room, SPACE)
    return Vocabulary(
        kind="llama",
        pre="default",
        tokens=head + pieces + tail,
        types=[UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * room + [CONTROL] * 2,
        scores=[0.0] * len(head) + [-float(rank) for rank in range(room)] + [0.0] * 2,
        merges=[],
        bos=1,
        eos=2,
        eot=size - 1,
        adds_bos=True,
        chat_template="{{ bos_token }}" + CHATML,
    )


def _train_pieces(size: int) -> list[str]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False)
    tokenizer.train_from_iterator(SAMPLE.splitlines(), trainer)
    vocabulary = tokenizer.get_vocab()
    characters = [piece for piece in vocabulary if len(piece) == 1]
    longer = [piece for piece in vocabulary if len(piece) > 1]
    # Merged pieces first: single characters are never a merge's result and score lowest.
    return sorted(longer, key=vocabulary.__getitem__) + sorted(characters)


def _build_gpt2(pre: str, size: int) -> Vocabulary:
    control = CONTROL_TOKENS[pre]
    user_defined = ["<tool_call>", "</tool_call>"]
    tail = user_defined + control
    room = size - len(tail)
    trained, merges = train_byte_level(SAMPLE.splitlines(), pre, min(room, 2000))
    tokens = _padded(trained, room, "\u0120") + tail
    is_llama3 = pre == "llama-bpe"
    ids = {token: room + len(user_defined) + index for index, token in enumerate(control)}
    return Vocabulary(
        kind="gpt2",
        pre=pre,
        tokens=tokens,
        types=[NORMAL] * room + [USER_DEFINED] * 2 + [CONTROL] * len(control),
        scores=[],
        merges=merges,
        bos=ids[control[0]],
        eos=ids["<|end_of_text|>" if is_llama3 else "<|endoftext|>"],
        eot=ids["<|eot_id|>" if is_llama3 else "<|im_end|>"],
        adds_bos=is_llama3,
        chat_template=LLAMA3_CHAT if is_llama3 else CHATML,
    )


def train_byte_level(lines: Sequence[str], pre: str, size: int) -> tuple[list[str], list[str]]:
    """Byte-level BPE of at most `size` tokens: tokens in id order, merges as "left right"."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZERS[pre]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(lines, trainer)
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    return tokens, _learnt_merges(tokenizer)


def _learnt_merges(tokenizer: Tokenizer) -> list[str]:
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _padded(tokens: list[str], size: int, space: str) -> list[str]:
    """Cut or extended to `size` with made-up words that no merge ever reaches."""
    taken = tokens[:size]
    return taken + [f"{space}pad{index}" for index in range(size - len(taken))]
