"""The bundled model's tokenizer and chat template: conversations to ids, with the answers marked.

A byte-level BPE with the qwen2 pre-tokenizer (digits one by one) trained on the corpus; tool markup
is one token each. The template is `ember_template.jinja`, the one written into the GGUF.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import jinja2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from tests.models.ember_conversation import Conversation
from tests.models.ember_corpus import draw_conversations
from tests.models.vocabularies import (
    CONTROL,
    NORMAL,
    PRE_TOKENIZERS,
    USER_DEFINED,
    Vocabulary,
    train_byte_level,
)

PRE = "qwen2"
VOCABULARY_SIZE = 2048
MARKUP = [
    "<tools>",
    "</tools>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
]
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = Path(__file__).parent / "ember_template.jinja"


@dataclass(frozen=True)
class EmberText:
    """Everything between a conversation and ids."""

    vocabulary: Vocabulary
    tokenizer: Tokenizer
    template: jinja2.Template

    def render(self, item: Conversation) -> str:
        return self.template.render(messages=item.messages, tools=item.tools)

    def encode(self, item: Conversation) -> tuple[list[int], list[bool]]:
        """Ids of the whole conversation, and for each whether the assistant has to write it."""
        ids = self.tokenizer.encode(self.render(item), add_special_tokens=False).ids
        return ids, self._answers(ids)

    def _answers(self, ids: list[int]) -> list[bool]:
        """True from after an assistant's header to its end token, that included."""
        header = self.tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False).ids
        marks, is_inside = [False] * len(ids), False
        for index in range(len(ids)):
            marks[index] = is_inside
            if ids[index] == self.vocabulary.eot:
                is_inside = False
            elif ids[max(0, index + 1 - len(header)) : index + 1] == header:
                is_inside = True
        return marks


def build_text(seed: int = 0) -> EmberText:
    """Train the tokenizer on one epoch of conversations; the same seed gives the same tokens."""
    template = load_template()
    texts = [
        template.render(messages=item.messages, tools=item.tools)
        for item in draw_conversations(Random(f"{seed}-tokenizer"))
    ]
    room = VOCABULARY_SIZE - len(MARKUP) - len(CONTROLS)
    tokens, merges = train_byte_level(plain_parts(texts), PRE, room)
    if len(tokens) != room:
        raise ValueError(f"the corpus gives only {len(tokens)} of {room} tokens")
    vocabulary = Vocabulary(
        kind="gpt2",
        pre=PRE,
        tokens=[*tokens, *MARKUP, *CONTROLS],
        types=[NORMAL] * room + [USER_DEFINED] * len(MARKUP) + [CONTROL] * len(CONTROLS),
        scores=[],
        merges=merges,
        bos=VOCABULARY_SIZE - 3,
        eos=VOCABULARY_SIZE - 1,
        eot=VOCABULARY_SIZE - 1,
        adds_bos=False,
        chat_template=template_text(),
    )
    return EmberText(vocabulary, build_tokenizer(vocabulary), template)


def plain_parts(texts: list[str]) -> list[str]:
    """The texts cut at markup, so that no merge crosses it."""
    for mark in [*MARKUP, *CONTROLS]:
        texts = [part for text in texts for part in text.split(mark) if part]
    return texts


def build_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    merges = [(left, right) for left, right in (merge.split(" ") for merge in vocabulary.merges)]
    tokenizer = Tokenizer(models.BPE(ids, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZERS[vocabulary.pre]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in CONTROLS])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in MARKUP])
    return tokenizer


def template_text() -> str:
    return TEMPLATE.read_text("utf-8").rstrip("\n")


def load_template() -> jinja2.Template:
    """The template as chat clients run it: `tojson` is plain JSON, without HTML escapes."""
    environment = jinja2.Environment(autoescape=False, trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = _plain_json
    return environment.from_string(template_text())


def _plain_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
