"""Vision towers of one tile size against llama.cpp: the text after an image is as likely with both.

Images need no resizing, as far as a kind allows it, so that only the towers are compared.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from tests.models.class_tokens import make_without_token, twin_for_llama_cpp
from tests.models.random_gguf import make_gguf
from tests.models.random_vision import EXACT_SIZES, TEXT_SIDES, make_projector, plain_png, png
from tests.models.random_vision_towers import TOWERS
from tests.parity.converted import converted_file
from tests.parity.onnx_loop import OnnxLoop
from tests.parity.vision_onnx import Eyes, converted_tower, pieces_of
from tests.parity.vision_reference import SeeingLlamaCpp

VOCABULARY = 700
# llama.cpp looks GELU up in half precision, and rounds activations to the type of the weights.
CLOSE = {"F32": 0.006, "F16": 0.008, "BF16": 0.05, "Q8_0": 0.2}
# Answers after two different images are further apart than this.
FAR = 0.5
Prompt = Sequence[str | bytes]
LogProbs = npt.NDArray[np.float64]


def text_model(path: pathlib.Path, kind: str) -> pathlib.Path:
    """Of one block: there it makes no difference whether the positions of an image see each other."""
    side = TEXT_SIDES[kind]
    return make_gguf(
        path,
        architecture=side.architecture,
        types="F32",
        tokenizer=side.tokenizer,
        pre=side.pre,
        control=side.control,
        merges=side.merges,
        metadata=side.metadata,
        blocks=1,
        embedding=TOWERS[kind].shape.text,
        heads=4,
        kv_heads=2,
        feed_forward=256,
    )


def projectors(folder: pathlib.Path, kind: str, types: str) -> tuple[pathlib.Path, pathlib.Path]:
    """(the file that we read, the file that tells llama.cpp the same)."""
    path = folder / "mmproj.gguf"
    if kind == "mlp":
        return make_without_token(path, kind, types=types), path
    make_projector(path, kind, types=types)
    if kind != "internvl":
        return path, path
    return path, twin_for_llama_cpp(path, folder / "twin.gguf")


def ours(eyes: Eyes, text: pathlib.Path, model: SeeingLlamaCpp, prompt: Prompt) -> LogProbs:
    """f64 [vocabulary], the ids of texts being llama.cpp's."""
    loop, rows = OnnxLoop(text), []
    for place, piece in enumerate(pieces_of(eyes, prompt)):
        if isinstance(piece, str):
            piece = loop.embedded(model.tokenize(piece, add_special=not place))
        rows.append(piece)
    found = loop.run_vectors(np.concatenate(rows))
    return found["logits"][0].astype(np.float64) - float(found["lse"][0])


def distances(
    folder: pathlib.Path, kind: str, types: str, images: Sequence[bytes]
) -> npt.NDArray[np.float64]:
    """[images, images]: how far our answer after one is from llama.cpp's after the other, at most."""
    text = text_model(folder / "text.gguf", kind)
    path, reference = projectors(folder, kind, types)
    eyes, artifact = Eyes(converted_tower(path)), converted_file(text)
    prompts = [["The ", image, " and"] for image in images]
    with SeeingLlamaCpp(text, reference) as model:
        found = [ours(eyes, artifact, model, prompt) for prompt in prompts]
        wanted = [model.seen_logprobs(prompt, VOCABULARY) for prompt in prompts]
    return np.array([[np.abs(one - other).max() for other in wanted] for one in found])


@pytest.mark.parametrize("types", CLOSE)
@pytest.mark.parametrize("kind", ["gemma3", "mlp", "idefics3", "internvl"])
def test_text_after_an_image_is_as_likely(tmp_path: pathlib.Path, kind: str, types: str) -> None:
    images = [png(*EXACT_SIZES[kind], seed) for seed in (3, 4)]
    found = distances(tmp_path, kind, types, images)
    assert found.diagonal().max() < CLOSE[types]
    assert min(found[0, 1], found[1, 0]) > FAR


@pytest.mark.parametrize(("kind", "size"), [("idefics3", (200, 90)), ("idefics3", (60, 170))])
def test_tiles_stand_in_their_places(
    tmp_path: pathlib.Path, kind: str, size: tuple[int, int]
) -> None:
    """Images of one colour look the same however they are resized."""
    images = [plain_png(*size, colour) for colour in ((200, 20, 20), (20, 20, 200))]
    found = distances(tmp_path, kind, "F32", images)
    assert found.diagonal().max() < CLOSE["F32"]
    assert min(found[0, 1], found[1, 0]) > FAR
