"""Models with eyes through our converter, tower and engine, at the level of ids: no worker between.

Prompts are lists of texts and image files, as `vision_reference` takes them.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import pathlib
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from PIL import Image

from backends.image_span import ImageSpan, image_id
from backends.text.prompt import ModelText
from backends.types import EngineError, Failed, Finished, GenerateRequest, Sampled, Sampling
from backends.vision.kinds import kind_of
from backends.vision.plan import ImagePlan, MarkupText, Tower
from converters.convert_vision import VisionRequest, convert_vision
from tests.parity.converted import SilentProgress, converted_file
from tests.parity.test_served_architectures import loaded
from tests.parity.vision_reference import SeenPrompt

TARGETS = ("onnx-cpu", "mlx")
TOP = 20


class SeenAnswer(NamedTuple):
    """`tops` are for each id of the answer the likeliest ones there with their log-probabilities."""

    ids: list[int]
    tops: list[dict[int, float]]
    prompt_tokens: int
    cached_tokens: int


def converted_tower(path: pathlib.Path, target: str) -> pathlib.Path:
    """The vision artifact's folder, beside the file."""
    final = path.with_name(f"{path.stem}-vision-{target}")
    request = VisionRequest(source="e1" * 32, target=target, final=final)
    with path.open("rb") as file:
        convert_vision(file, request, SilentProgress())
    return final


def opened_tower(folder: pathlib.Path, target: str) -> Tower:
    """On the target's runtime."""
    runtime = importlib.import_module(f"backends.{target.partition('-')[0]}.tower")
    return runtime.open_tower(folder, threads=1)


class Seeing:
    """One engine with a tower; use as a context manager. `runs` counts the tower's."""

    def __init__(
        self, text: pathlib.Path, projector: pathlib.Path, target: str, context: int = 512
    ) -> None:
        folder, eyes = converted_file(text, target=target), converted_tower(projector, target)
        self.text, self.artifact = ModelText.load(folder)
        self.tower = opened_tower(eyes, target)
        self.form = self.tower.artifact.form
        self.kind = kind_of(self.form.projector)
        self.engine = loaded(folder, target, projector=eyes, context=context)
        self.runs = 0
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.engine.close()
        self.tower.close()

    def ask(self, prompt: SeenPrompt, count: int = 1) -> SeenAnswer:
        """Greedy. Raises EngineError as the request failed."""
        self._count += 1
        request = self._request(str(self._count), prompt, count)
        self.engine.add(request)
        sampled: list[Sampled] = []
        while self.engine.has_work():
            for event in self.engine.step():
                match event:
                    case Sampled():
                        sampled.append(event)
                    case Failed(code=code, message=message):
                        raise EngineError(code, message)
                    case Finished(usage=usage):
                        ids = [each.token_id for each in sampled]
                        tops = [dict(each.top) for each in sampled]
                        return SeenAnswer(ids, tops, usage.prompt_tokens, usage.cached_tokens)
                    case _:
                        pass
        raise AssertionError("the engine never finished")

    def _request(self, name: str, prompt: SeenPrompt, count: int) -> GenerateRequest:
        first = prompt[0] if isinstance(prompt[0], str) else ""
        ids = [*self.text.tokenizer.encode_prompt(first)]
        spans: list[ImageSpan] = []
        for piece in prompt[1 if first else 0 :]:
            if isinstance(piece, bytes):
                self._put(piece, ids, spans)
            else:
                ids += self.text.tokenizer.encode(piece)
        return GenerateRequest(
            request_id=name,
            prompt_ids=tuple(ids),
            images=tuple(spans),
            max_tokens=count,
            sampling=Sampling(temperature=0.0),
            top_logprobs=TOP,
            context_length=512,
        )

    def _put(self, data: bytes, ids: list[int], spans: list[ImageSpan]) -> None:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        plan = self.kind.plan(self.form, *image.size)
        vectors = self._vectors(plan, image)
        for number, part in enumerate(plan.parts):
            if isinstance(part, MarkupText):
                ids += self.text.tokenizer.encode(part.text)
                continue
            spans.append(
                ImageSpan(
                    start=len(ids),
                    length=part.length,
                    embeddings=next(vectors),
                    rows=part.rows,
                    columns=part.columns,
                    is_bidirectional=self.tower.artifact.is_bidirectional,
                )
            )
            ids += [image_id(hashlib.sha256(data + bytes([number])).digest())] * part.length

    def _vectors(self, plan: ImagePlan, image: Image.Image) -> Iterator[bytes]:
        found: list[np.ndarray] = []
        for inputs in self.kind.inputs(self.form, plan, image):
            self.runs += 1
            found.append(self.tower.run(inputs))
        arranged = self.kind.arrange(self.form, plan, found, self.tower.row_break)
        return (np.ascontiguousarray(each, "<f4").tobytes() for each in arranged)
