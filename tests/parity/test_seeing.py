"""Models with eyes through tower and engine, beside llama.cpp: the same positions, the same likeliest ids.

Images need no resizing. The prompts have images in every place: first, in the middle, two of them, and in
an earlier turn, whose positions come from the prefix cache.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import NamedTuple

import numpy as np
import pytest

from tests.models.random_vision import EXACT_SIZES, TEXT_SIDES, make_text, png
from tests.models.random_vision_towers import TOWERS
from tests.parity.seeing import TARGETS, Seeing, SeenAnswer
from tests.parity.test_vision_onnx import projectors
from tests.parity.vision_reference import SeeingLlamaCpp, SeenPrompt

pytestmark = pytest.mark.parity

VOCABULARY, COUNT = 700, 6
# llama.cpp looks GELU up in half precision, and rounds activations to the type of the weights.
CLOSE = {"F32": 6e-3, "F16": 8e-3, "Q8_0": 0.2}
# Greedy ids may differ where the two are nearer than this; what follows is another text.
TIE = {"F32": 0.02, "F16": 0.03, "Q8_0": 0.5}
# Answers after two different images are further apart than this.
FAR = 0.3


class Expected(NamedTuple):
    """What llama.cpp says: positions of the prompt, log-probabilities of the next id, greedy ids."""

    length: int
    row: np.ndarray
    ids: list[int]


def prompts_of(kind: str) -> dict[str, SeenPrompt]:
    first, second = (png(*EXACT_SIZES[kind], seed) for seed in (1, 2))
    return {
        "middle": ["The kettle ", first, " and what"],
        "first": [first, "A small fire"],
        "two": ["One ", second, " two ", first, " three"],
    }


def expected_of(model: SeeingLlamaCpp, prompt: SeenPrompt) -> Expected:
    row = model.seen_logprobs(prompt, VOCABULARY)
    return Expected(model.seen_length(prompt), row, model.seen_greedy(prompt, COUNT))


def worst(found: SeenAnswer, row: np.ndarray) -> float:
    """Among the five ids that llama.cpp finds likeliest."""
    best = np.argsort(-row)[:5]
    return max(abs(found.tops[0].get(int(one), -np.inf) - float(row[one])) for one in best)


def check(found: SeenAnswer, expected: Expected, types: str) -> None:
    assert found.prompt_tokens == expected.length
    assert worst(found, expected.row) < CLOSE[types]
    for place, (ours, theirs) in enumerate(zip(found.ids, expected.ids, strict=False)):
        if ours != theirs:
            assert is_tie(found.tops[place], ours, theirs, TIE[types])
            break


def is_tie(top: dict[int, float], ours: int, theirs: int, least: float) -> bool:
    return theirs in top and top[ours] - top[theirs] < least


class Case(NamedTuple):
    text: pathlib.Path
    projector: pathlib.Path
    prompts: dict[str, SeenPrompt]
    expected: dict[str, Expected]


def made(folder: pathlib.Path, kind: str, types: str) -> Case:
    text = make_text(folder / "text.gguf", kind)
    projector, reference = projectors(folder, kind, types)
    prompts = prompts_of(kind)
    with SeeingLlamaCpp(text, reference) as model:
        expected = {name: expected_of(model, prompt) for name, prompt in prompts.items()}
        answer = model.detokenize(expected["middle"].ids)
        later = [*prompts["middle"][:-1], f" and what{answer} so"]
        prompts["later"] = later
        expected["later"] = expected_of(model, later)
    return Case(text, projector, prompts, expected)


@pytest.mark.parametrize("kind", TOWERS)
def test_answers_after_images_are_those_of_llama_cpp(tmp_path: pathlib.Path, kind: str) -> None:
    case = made(tmp_path, kind, "F32")
    apart = np.abs(case.expected["middle"].row - case.expected["two"].row).max()
    assert apart > FAR
    for target in TARGETS:
        with Seeing(case.text, case.projector, target) as model:
            for name, prompt in case.prompts.items():
                check(model.ask(prompt, COUNT), case.expected[name], "F32")
            again = model.ask(case.prompts["later"], COUNT)
            check(again, case.expected["later"], "F32")
            assert again.cached_tokens > again.prompt_tokens // 2


@pytest.mark.parametrize("types", ["F16", "Q8_0"])
@pytest.mark.parametrize("kind", TOWERS)
def test_projectors_of_fewer_bits(tmp_path: pathlib.Path, kind: str, types: str) -> None:
    case = made(tmp_path, kind, types)
    for target in TARGETS:
        with Seeing(case.text, case.projector, target) as model:
            check(model.ask(case.prompts["middle"]), case.expected["middle"], types)


@pytest.mark.parametrize("window", [8, 20])
def test_windows_shorter_than_an_image_end_before_it_only(
    tmp_path: pathlib.Path, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma 3's positions of an image see all that is behind them in it, whatever the window."""
    side = TEXT_SIDES["gemma3"]
    shorter = dataclasses.replace(side, metadata={"gemma3.attention.sliding_window": window})
    rows: list[np.ndarray] = []
    for each in (side, shorter):
        monkeypatch.setitem(TEXT_SIDES, "gemma3", each)
        folder = tmp_path / str(len(rows))
        folder.mkdir()
        case = made(folder, "gemma3", "F32")
        rows.append(case.expected["middle"].row)
    assert np.abs(rows[0] - rows[1]).max() > 0.05  # the window matters
    for target in TARGETS:
        with Seeing(case.text, case.projector, target) as model:
            for name, prompt in case.prompts.items():
                check(model.ask(prompt, COUNT), case.expected[name], "F32")
