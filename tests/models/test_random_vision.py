"""Every random projector is one that llama.cpp loads beside its text model, and that sees."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from tests.models.random_vision import EXACT_SIZES, make_projector, make_text, png
from tests.models.random_vision_towers import TOWERS
from tests.parity.vision_reference import SeeingLlamaCpp, image_part

VOCABULARY = 700
# Positions of an image of `EXACT_SIZES`, the tokens around it included.
POSITIONS = {
    "gemma3": 16 + 2 + 1,  # a space that is merged with a word where nothing stands between them
    "mlp": 64 + 1,
    "idefics3": 3 * 4 + 8,
    "internvl": 16 + 2,
    "qwen2vl": 6 * 4 + 2,
    "qwen2.5vl": 6 * 5 + 2,
    "qwen3vl": 5 * 4 + 2,
    "pixtral": 7 * 5 + 4 + 1,
    "pixtral-merged": 5 * 3 + 2 + 1,
}


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("types", ["F32", "F16", "Q8_0"])
def test_llama_cpp_sees_with_every_kind(tmp_path: pathlib.Path, kind: str, types: str) -> None:
    text = make_text(tmp_path / "text.gguf", kind)
    projector = make_projector(tmp_path / "mmproj.gguf", kind, types=types)
    first, second = (png(*EXACT_SIZES[kind], seed) for seed in (1, 2))
    with SeeingLlamaCpp(text, projector) as model:
        rows = [
            model.seen_logprobs(["The ", image, " and"], VOCABULARY) for image in (first, second)
        ]
        length = model.seen_length(["The ", first, " and"])
        blind = model.seen_length(["The  and"])
        chosen = model.seen_greedy(["The ", first, " and"], 6)
    assert all(np.isfinite(row).all() and 1.5 < row.std() < 4.0 for row in rows)
    assert np.abs(rows[0] - rows[1]).max() > 0.5
    assert chosen[0] == int(rows[0].argmax())
    assert length - blind == POSITIONS[kind]


def test_one_file_is_the_same_each_time_and_may_name_its_type_otherwise(
    tmp_path: pathlib.Path,
) -> None:
    first, again = (make_projector(tmp_path / f"{n}.gguf", "mlp") for n in "ab")
    assert first.read_bytes() == again.read_bytes()
    newer = make_projector(tmp_path / "c.gguf", "mlp", has_newer_key=True)
    text, image = make_text(tmp_path / "text.gguf", "mlp"), png(112, 112)
    found: list[int] = []
    for path in (first, newer):
        with SeeingLlamaCpp(text, path) as model:
            found.append(model.seen_greedy(["See ", image, " now"], 1)[0])
    assert found[0] == found[1]


def test_llama_cpp_chats_about_an_image(tmp_path: pathlib.Path) -> None:
    text = make_text(tmp_path / "text.gguf", "qwen2vl")
    projector = make_projector(tmp_path / "mmproj.gguf", "qwen2vl")
    parts = [{"type": "text", "text": "What is it?"}, image_part(png(168, 112))]
    with SeeingLlamaCpp(text, projector) as model:
        answer = model.chat([{"role": "user", "content": parts}], 4)
    assert answer["usage"]["prompt_tokens"] > 24
