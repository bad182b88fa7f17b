"""What a training conversation of the bundled model is, and access to its written corpus."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

CORPUS = Path(__file__).parent / "corpus"
Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Messages in wire form, ending with the assistant's; `tools` as a client would send them."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()


@functools.cache
def load(name: str) -> Any:
    """One corpus file."""
    return json.loads((CORPUS / f"{name}.json").read_text("utf-8"))


def turn(question: str, answer: str) -> tuple[Message, Message]:
    return {"role": "user", "content": question}, {"role": "assistant", "content": answer}


def single(question: str, answer: str) -> Conversation:
    return Conversation(turn(question, answer))


def drawn(random: Random, table: str) -> str:
    """An entry of a table, or now and then an invented word that can only be copied."""
    if random.random() < 0.35:
        syllables = random.choices(SYLLABLES, k=random.randint(2, 4))
        return "".join(syllables).capitalize()
    return random.choice(load("tables")[table])


SYLLABLES = [
    first + last for first in "bdfgklmnprstvz" for last in ("a", "e", "i", "o", "an", "or")
]
