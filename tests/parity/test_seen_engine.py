"""Images through the whole ONNX engine against llama.cpp: what is likely next, and greedy answers.

In chunks, with kept prefixes, beside text, on the CPU and on a device that is the machine's own memory.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pytest

from backends.image_span import ImageSpan, image_id
from backends.onnx.engine import OnnxEngine
from backends.types import GenerateRequest, Sampled
from backends.vision.plan import Vectors
from tests.backends.onnx.device_rig import on_device
from tests.backends.onnx.engine_rig import ask, ids_of, load, run, usage_of
from tests.models.random_vision import EXACT_SIZES, make_projector, make_text, png
from tests.parity.converted import converted_file
from tests.parity.vision_onnx import Eyes, converted_tower, opened
from tests.parity.vision_reference import SeeingLlamaCpp

pytestmark = pytest.mark.parity

KINDS = ("gemma3", "qwen2vl", "qwen3vl", "idefics3")
CONTEXT, VOCABULARY, TOP = 400, 700, 20
CLOSE = 0.02  # of log-probabilities: llama.cpp's GELU is a table of half floats
BEFORE = "The sun was seen and the old man in the town went on with all of his work and so the "
Prompt = Sequence[str | bytes]


class Sight(NamedTuple):
    """A text model and its tower, converted; and both in llama.cpp."""

    artifact: pathlib.Path
    eyes: Eyes
    reference: SeeingLlamaCpp
    images: tuple[bytes, bytes]

    def asked(self, name: str, prompt: Prompt, max_tokens: int = 1, **fields) -> GenerateRequest:
        """Ids and spans as the worker makes them, texts being cut into ids by llama.cpp."""
        ids: list[int] = []
        spans: list[ImageSpan] = []
        for place, piece in enumerate(prompt):
            if isinstance(piece, str):
                ids += self.reference.tokenize(piece, add_special=not place)
                continue
            self._show(piece, ids, spans)
        return ask(name, ids, max_tokens, images=tuple(spans), top_logprobs=TOP, **fields)

    def _show(self, data: bytes, ids: list[int], spans: list[ImageSpan]) -> None:
        image = opened(data)
        vectors = iter(self.eyes.vectors(image))
        for part in self.eyes.plan(image).parts:
            if not isinstance(part, Vectors):
                ids += self.reference.tokenize(part.text, add_special=False)
                continue
            spans.append(
                ImageSpan(
                    start=len(ids), length=part.length, rows=part.rows, columns=part.columns,
                    embeddings=np.ascontiguousarray(next(vectors), "<f4").tobytes(),
                    is_bidirectional=self.eyes.tower.artifact.is_bidirectional,
                )
            )  # fmt: skip
            ids += [image_id(data[-40:])] * part.length

    def check(self, engine: OnnxEngine, name: str, prompt: Prompt, **fields) -> int:
        """The next id's likeliest are llama.cpp's. Returns how many ids were kept."""
        expected = self.reference.seen_logprobs(prompt, VOCABULARY)
        engine.add(self.asked(name, prompt, **fields))
        events = run(engine)[name]
        first = next(event for event in events if isinstance(event, Sampled))
        assert len(first.top) == TOP
        assert max(abs(value - expected[one]) for one, value in first.top) < CLOSE
        assert usage_of(events).prompt_tokens == self.reference.seen_length(prompt)
        return usage_of(events).cached_tokens


@pytest.fixture(params=KINDS, scope="module")
def sight(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sight]:
    kind, folder = request.param, tmp_path_factory.mktemp("sight")
    text, projector = make_text(folder / "text.gguf", kind), folder / "mmproj.gguf"
    eyes = Eyes(converted_tower(make_projector(projector, kind)))
    images = png(*EXACT_SIZES[kind], 3), png(*EXACT_SIZES[kind], 4)
    with SeeingLlamaCpp(text, projector, context=CONTEXT) as reference:
        yield Sight(converted_file(text), eyes, reference, images)


@pytest.fixture(params=["cpu", "device"])
def engine(request: pytest.FixtureRequest, sight: Sight) -> Iterator[OnnxEngine]:
    if request.param == "cpu":
        engine = load(sight.artifact, context_length=CONTEXT)
    else:
        engine = on_device(sight.artifact)
    yield engine
    engine.close()


def test_what_comes_next_is_as_likely(engine: OnnxEngine, sight: Sight) -> None:
    one, other = sight.images
    said = [
        sight.reference.seen_logprobs(["The ", each, " and"], VOCABULARY) for each in (one, other)
    ]
    assert np.abs(said[0] - said[1]).max() > 10 * CLOSE
    sight.check(engine, "a", ["The ", one, " and"])
    sight.check(engine, "b", ["The ", other, " and"])
    sight.check(engine, "c", [BEFORE, one, " and then"])
    sight.check(engine, "d", [BEFORE, one, " and ", other, " are the same and so the"])


def test_kept_prefixes_and_chunks_say_the_same(
    engine: OnnxEngine, sight: Sight, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = sight.images
    monkeypatch.setattr(engine._pace, "chunk", lambda left, is_decoding: min(left, 7))
    assert sight.check(engine, "a", [BEFORE, one, " and the"]) == 0
    assert sight.check(engine, "b", [BEFORE, one, " and the"]) >= 16
    assert sight.check(engine, "c", [BEFORE, one, " then it was", other, " and"]) >= 16
    cached = sight.check(engine, "e", [BEFORE, one, " then it was", other, " and so"])
    assert cached > len(sight.asked("x", [BEFORE, one]).prompt_ids)
    assert sight.check(engine, "d", [BEFORE, other, " and the"]) >= 16


def test_answers_are_those_of_llama_cpp(engine: OnnxEngine, sight: Sight) -> None:
    one, other = sight.images
    prompts: list[Prompt] = [
        ["The ", one, " and"],
        [BEFORE, other, " and then"],
        [f"{BEFORE}man and so it was with"],
        ["It was", one, " or ", other, " and the"],
    ]
    texts = sight.reference.tokenize(f"{BEFORE}man and so it was with", add_special=True)
    expected = [
        sight.reference.greedy(texts, 12) if place == 2 else sight.reference.seen_greedy(prompt, 12)
        for place, prompt in enumerate(prompts)
    ]
    for place, prompt in enumerate(prompts):
        engine.add(sight.asked(f"r{place}", prompt, 12))
    events = run(engine)
    assert [ids_of(events[f"r{place}"]) for place in range(len(prompts))] == expected
