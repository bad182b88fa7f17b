"""The text side beside llama.cpp on the same file: ids, bytes of ids, rendered prompts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backends.text.prompt import ModelText
from backends.types import Chat, Message
from converters.convert import Request, convert
from converters.progress import Progress
from tests.models.random_gguf import make_gguf
from tests.models.reference import LlamaCpp

pytestmark = pytest.mark.parity

TEXTS = [
    "Why is the sky blue?",
    "  two  spaces\n\n\tand a tab ",
    "naïve café — “quotes” 10,000.5 €",
    "日本語 и русский 🙂",
    "def add(a, b):\n    return a + b\n",
    "",
]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ModelText, LlamaCpp]]:
    folder = tmp_path_factory.mktemp("reference")
    path = make_gguf(folder / "m.gguf", types="Q8_0", tokenizer=request.param, embedding=64)
    wanted = Request(source="0" * 64, target="onnx-cpu", final=folder / "artifact")
    with path.open("rb") as file:
        convert(file, wanted, Progress())
    model, _ = ModelText.load(wanted.final)
    with LlamaCpp(path) as reference:
        yield model, reference


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_the_same(both: tuple[ModelText, LlamaCpp], text: str) -> None:
    model, reference = both
    ids = reference.tokenize(text, add_special=True)
    assert list(model.tokenizer.encode_prompt(text)) == ids


def test_every_id_has_the_same_text(both: tuple[ModelText, LlamaCpp]) -> None:
    """Between two ids of plain letters, where no rule about leading spaces applies."""
    model, reference = both
    (frame,) = reference.tokenize("a")[-1:]
    for token_id in range(700):
        piece = model.tokenizer.piece(token_id)
        try:
            text = piece.decode()
        except UnicodeDecodeError:
            continue  # part of a character: the reference answers in text and cannot show it
        shown = reference.detokenize([frame, frame, token_id, frame])
        expected = (
            reference.detokenize([frame, frame]) + text + model.tokenizer.piece(frame).decode()
        )
        assert shown == expected, token_id


def test_prompts_are_rendered_the_same(both: tuple[ModelText, LlamaCpp]) -> None:
    model, reference = both
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hi \n"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Why?"},
    ]
    messages = tuple(Message(role=turn["role"], content=turn["content"]) for turn in turns)
    text = model.prompt_text(Chat(request_id="c", messages=messages))
    rendered = reference.render(turns)
    bos = model.tokenizer.piece(model.tokenizer.special.bos_id).decode()
    # The reference takes a leading BOS away, because its tokenizer adds one.
    assert text.removeprefix(bos) == rendered.removeprefix(bos)
    assert model.tokenizer.encode_prompt(text) == tuple(
        reference.tokenize(rendered, add_special=True)
    )
