"""llama.cpp with a projector, as the reference for images: prompts are text with images in it.

A prompt is a list of texts and image files (bytes). llama.cpp itself decodes and cuts the images,
puts its kind's tokens around their vectors and tells how many positions the whole has.
"""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.models.random_vision import png
from tests.models.reference import LlamaCpp, TokenLogprob

TRIES = 12
SeenPrompt = Sequence[str | bytes]


class SeeingLlamaCpp(LlamaCpp):
    """`LlamaCpp` with a projector file loaded beside the model."""

    def __init__(
        self, path: str | Path, projector: str | Path, *, context: int = 512, threads: int = 1
    ) -> None:
        super().__init__(path, context=context, threads=threads, projector=projector)
        with urllib.request.urlopen(f"{self._address}/props", timeout=60) as response:
            found = json.loads(response.read())
        if not found.get("modalities", {}).get("vision"):
            raise ValueError(f"llama.cpp sees nothing with {projector}")
        self._marker = found.get("media_marker", "<__media__>")

    def seen_length(self, prompt: SeenPrompt) -> int:
        """Positions that the prompt has in the context, special tokens and vectors included."""
        return self._complete(self._joined(prompt), 1)["tokens_evaluated"]

    def seen_greedy(self, prompt: SeenPrompt, count: int) -> list[int]:
        for place in range(TRIES):
            found = self._complete(self._joined(prompt), count, 1)
            first = found["completion_probabilities"][0]["top_logprobs"][0]["logprob"]
            if first is not None and np.isfinite(first):
                return found["tokens"]
            self._scrub(place)
        raise _no_numbers()

    def seen_top(self, prompt: SeenPrompt, top: int = 5) -> list[TokenLogprob]:
        """The `top` candidates for the token after the prompt, best first."""
        for place in range(TRIES):
            found = self.top_logprobs(self._joined(prompt), top)
            numbers = [one.logprob for one in found]
            if all(number is not None and np.isfinite(number) for number in numbers):
                return found
            self._scrub(place)
        raise _no_numbers()

    def seen_logprobs(self, prompt: SeenPrompt, vocabulary: int) -> npt.NDArray[np.float64]:
        """f64 [vocabulary]: log-probability of every id after the prompt."""
        for place in range(TRIES):
            found = self.logprobs(self._joined(prompt), vocabulary)
            if np.isfinite(found).all():
                return found
            self._scrub(place)
        raise _no_numbers()

    def chat(self, messages: list[dict[str, Any]], count: int) -> dict[str, Any]:
        """OpenAI's chat completions, greedy; image parts as `image_part` makes them."""
        body = {
            "messages": messages,
            "max_tokens": count,
            "temperature": 0,
            "cache_prompt": False,
        }
        return self._post("/v1/chat/completions", body)

    def _scrub(self, place: int) -> None:
        """llama.cpp makes Pixtral's row breaks by multiplying memory as it finds it by 0: NaN stays NaN.

        Images of other sizes write other numbers there.
        """
        image = png(112 + 28 * place, 140 - 28 * (place % 3))
        self._complete(self._joined(["a", image, "b"]), 1)

    def _joined(self, prompt: SeenPrompt) -> dict[str, Any]:
        if isinstance(prompt[-1], bytes):
            raise ValueError("llama.cpp's server dies of a prompt that ends in an image")
        pieces = [self._marker if isinstance(piece, bytes) else piece for piece in prompt]
        files = [_base64(piece) for piece in prompt if isinstance(piece, bytes)]
        return {"prompt_string": "".join(pieces), "multimodal_data": files}


def _no_numbers() -> BaseException:
    """Skips the test: it is the reference that failed, which says nothing about us."""
    return pytest.skip.Exception("llama.cpp gave no numbers, however often it was asked")


def image_part(data: bytes, media_type: str = "image/png") -> dict[str, Any]:
    """The part of an OpenAI message's content that holds an image."""
    return {
        "type": "image_url",
        "image_url": {"url": f"data:{media_type};base64,{_base64(data)}"},
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
