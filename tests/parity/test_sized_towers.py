"""Towers for images of any size: their numbers beside those in float64, and what is likely after images
beside llama.cpp, in several sizes.
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests.models import random_vision_towers
from tests.models.random_gguf import make_gguf
from tests.models.random_parts import Value
from tests.models.random_vision import QWEN_TOKENS, make_projector, make_text, pixels, png
from tests.models.random_vision_towers import TOWERS
from tests.models.tower_reference import ReferenceTower
from tests.parity.converted import converted_file
from tests.parity.sight_loop import Prompt, Seen, SightLoop
from tests.parity.vision_onnx import Eyes, converted_tower
from tests.parity.vision_reference import SeeingLlamaCpp

pytestmark = pytest.mark.parity

VOCABULARY, CONTEXT = 700, 1024
MARKS = {"qwen": ("<|vision_start|>", "<|vision_end|>"), "pixt": ("", "[IMG_END]")}
# In positions: one row, no square, windows cut off at both edges.
GRIDS = {
    "qwen2vl": [(2, 4), (6, 4), (3, 11)],
    "qwen2.5vl": [(8, 1), (6, 5), (9, 10)],
    "qwen3vl": [(8, 1), (4, 4), (5, 7)],
    "pixtral": [(8, 1), (7, 5), (13, 20)],
    "pixtral-merged": [(1, 8), (5, 3), (9, 12)],
}
# llama.cpp's GELU is a table of half floats. Rows and columns exchanged are 0.1 and more away.
TOLERANCE = 8e-3


# Of the numbers' own spread. Beside codes of 8 bits activations are rounded to as many.
SAME = {"F32": 2e-5, "F16": 2e-5, "Q8_0": 0.1}


def seen(eyes: Eyes, size: tuple[int, int], seed: int) -> Seen:
    image = Image.fromarray(pixels(*size, seed, 40.0))
    (vectors,) = eyes.plan(image).vectors
    return Seen(eyes.vectors(image)[0], vectors.rows, vectors.columns)


def sizes_of(eyes: Eyes, kind: str) -> list[tuple[int, int]]:
    step = eyes.form.patch_size * eyes.form.merge
    return [(step * columns, step * rows) for columns, rows in GRIDS[kind]]


@pytest.mark.parametrize("types", SAME)
@pytest.mark.parametrize("kind", GRIDS)
def test_vectors_are_those_in_float64(tmp_path: pathlib.Path, kind: str, types: str):
    compare_vectors(make_projector(tmp_path / "mmproj.gguf", kind, types=types), kind, SAME[types])


@pytest.mark.parametrize(("kind", "size"), [("qwen2.5vl", 80), ("qwen3vl", 72), ("pixtral", 64)])
def test_heads_of_published_sizes(
    tmp_path: pathlib.Path, kind: str, size: int, monkeypatch: pytest.MonkeyPatch
):
    spec = TOWERS[kind]
    shape = dataclasses.replace(spec.shape, width=2 * size)
    monkeypatch.setitem(TOWERS, kind, dataclasses.replace(spec, shape=shape))
    compare_vectors(make_projector(tmp_path / "mmproj.gguf", kind), kind, SAME["F32"])


def compare_vectors(path: pathlib.Path, kind: str, tolerance: float) -> None:
    eyes, tower = Eyes(converted_tower(path)), ReferenceTower(path)
    for seed, size in enumerate(sizes_of(eyes, kind)):
        expected = tower.vectors(pixels(*size, seed, 40.0))
        found = seen(eyes, size, seed).vectors
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < tolerance * expected.std()


@pytest.mark.parametrize("kind", GRIDS)
def test_logprobs_after_images_are_those_of_llama_cpp(tmp_path: pathlib.Path, kind: str):
    compare_logprobs(make_text(tmp_path / "text.gguf", kind), kind)


# Text models beside Qwen 3 VL's projector: the blocks after which it adds something, and own keys.
# Qwen 3.5 here has no pairs beyond its sections, which llama.cpp would not rotate.
OTHERS: dict[str, tuple[int, dict[str, Value]]] = {
    "qwen3vlmoe": (2, {"qwen3vlmoe.n_deepstack_layers": 2}),
    "qwen35": (0, {"qwen35.rope.dimension_sections": [3, 3, 2, 0]}),
}


@pytest.mark.parametrize("architecture", OTHERS)
def test_other_models_of_the_family_see_too(
    tmp_path: pathlib.Path, architecture: str, monkeypatch: pytest.MonkeyPatch
):
    deepstack, metadata = OTHERS[architecture]
    monkeypatch.setattr(random_vision_towers, "DEEPSTACK_BLOCKS", tuple(range(deepstack)))
    text = make_gguf(
        tmp_path / "text.gguf",
        architecture=architecture,
        types="F32",
        tokenizer="gpt2",
        pre="qwen2",
        control=QWEN_TOKENS,
        metadata=metadata,
        blocks=4,
        embedding=TOWERS["qwen3vl"].shape.text,
        feed_forward=256,
    )
    compare_logprobs(text, "qwen3vl")


def compare_logprobs(text: pathlib.Path, kind: str) -> None:
    """After one image of each size, and after two."""
    projector = make_projector(text.with_name("mmproj.gguf"), kind)
    eyes = Eyes(converted_tower(projector))
    folder, sizes = converted_file(text), sizes_of(eyes, kind)
    start, end = MARKS[kind[:4]]
    with SeeingLlamaCpp(text, projector, context=CONTEXT) as model:

        def ids(piece: str, *, is_first: bool = False) -> list[int]:
            return model.tokenize(piece, add_special=is_first)

        def compare(images: list[tuple[int, int]]) -> None:
            prompt: list[str | bytes] = ["The "]
            own: list[list[int] | Seen] = [ids("The ", is_first=True)]
            for seed, size in enumerate(images):
                prompt += [png(*size, seed), " and"]
                before = [ids(start)] if start else []
                own += [*before, seen(eyes, size, seed), ids(end), ids(" and")]
            check(model, prompt, own, folder)

        for size in sizes:
            compare([size])
        compare([sizes[0], sizes[1]])


def check(
    model: SeeingLlamaCpp, prompt: list[str | bytes], own: Prompt, folder: pathlib.Path
) -> None:
    expected = finite_logprobs(model, prompt)
    loop = SightLoop(folder, own, CONTEXT)
    length = sum(len(p.vectors) if isinstance(p, Seen) else len(p) for p in own)
    assert length == model.seen_length(prompt)
    found = loop.seen_logprobs()
    top = np.argsort(-expected)[:5]
    assert np.abs(found - expected)[top].max() < TOLERANCE
    assert np.abs(found - expected).max() < 5 * TOLERANCE


def finite_logprobs(model: SeeingLlamaCpp, prompt: list[str | bytes]) -> npt.NDArray[np.float64]:
    """llama.cpp makes pixtral's row breaks by multiplying memory as it finds it by 0: NaN stays."""
    for _ in range(5):
        found = model.seen_logprobs(prompt, VOCABULARY)
        if np.isfinite(found).all():
            return found
    raise AssertionError("llama.cpp gives no numbers")
