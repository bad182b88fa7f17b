"""Images through a whole worker, from the file to the likeliest next ids, beside llama.cpp."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from backends.types import Chat, Delta, Limits, Loaded, Message, Sampling
from tests.backends.worker.worker_client import SCRIPTED, WorkerClient
from tests.models.class_tokens import make_without_token, twin_for_llama_cpp
from tests.models.random_vision import EXACT_SIZES, make_projector, make_text, png
from tests.parity.converted import converted_file
from tests.parity.vision_onnx import converted_tower
from tests.parity.vision_reference import SeeingLlamaCpp

pytestmark = pytest.mark.parity

CLOSE = 0.02
TOP = 20
BACKENDS = {"onnx": "onnx-cpu", "mlx": "mlx"}
CASES = [
    # Positions that see each other are refused by name on ONNX Runtime so far.
    *[("onnx", kind) for kind in EXACT_SIZES if kind != "gemma3"],
    *[("mlx", kind) for kind in ("gemma3", "qwen2.5vl", "idefics3")],
]
LogProbs = npt.NDArray[np.float64]


def message(pieces: Sequence[str | bytes]) -> Message:
    """Texts and images in the order of `pieces`."""
    texts, images, places = "", list[bytes](), list[int]()
    for piece in pieces:
        if isinstance(piece, str):
            texts += piece
        else:
            images.append(piece)
            places.append(len(texts))
    return Message(role="user", content=texts, images=tuple(images), image_places=tuple(places))


def projectors(folder: pathlib.Path, kind: str) -> tuple[pathlib.Path, pathlib.Path]:
    """(the file that we read, the file that tells llama.cpp the same): see `class_tokens`."""
    path = folder / "mmproj.gguf"
    if kind == "mlp":
        return make_without_token(path, kind), path
    make_projector(path, kind)
    return path, twin_for_llama_cpp(path, folder / "twin.gguf") if kind == "internvl" else path


def likeliest(
    worker: WorkerClient, name: str, pieces: Sequence[str | bytes]
) -> tuple[LogProbs, int]:
    """(log-probabilities of the best next ids, best first; positions of the prompt)."""
    request = Chat(
        request_id=name,
        messages=(message(pieces),),
        template="{{ .Prompt }}",
        sampling=Sampling(temperature=0.0),
        limits=Limits(max_tokens=1, context_length=512),
        logprobs=True,
        top_logprobs=TOP,
    )
    worker.send(request)
    messages = worker.read_until_closed(name)[name]
    deltas = [message for message in messages if isinstance(message, Delta)]
    assert deltas, messages
    (found,) = (logprob for delta in deltas for logprob in delta.logprobs)
    usage = deltas[-1].usage
    assert usage is not None
    return np.array([one.logprob for one in found.top]), usage.prompt_tokens


@pytest.mark.parametrize(("backend", "kind"), CASES)
def test_a_worker_sees_what_llama_cpp_sees(tmp_path: pathlib.Path, backend: str, kind: str):
    text = make_text(tmp_path / "text.gguf", kind)
    projector, reference = projectors(tmp_path, kind)
    target = BACKENDS[backend]
    eyes = converted_tower(projector, target)
    artifact = converted_file(text, target=target, precise=target == "onnx-cpu")
    one, other = (png(*EXACT_SIZES[kind], seed) for seed in (3, 4))
    prompts = [["The ", one, " and"], ["The ", other, " and"], ["A ", one, " b ", other, " c"]]
    with SeeingLlamaCpp(text, reference) as model:
        wanted = [
            np.array([one.logprob for one in model.seen_top(prompt, TOP)]) for prompt in prompts
        ]
        lengths = [model.seen_length(prompt) for prompt in prompts]
    with WorkerClient(SCRIPTED, tmp_path / "log") as worker:
        loaded = worker.load(artifact, backend, context_length=512, projector=str(eyes))
        assert isinstance(loaded, Loaded), loaded
        assert "vision" in loaded.capabilities
        found = [likeliest(worker, f"p{n}", prompt) for n, prompt in enumerate(prompts)]
        again = likeliest(worker, "again", prompts[2])
    assert [length for _, length in found] == lengths
    for (ours, _), theirs in zip(found, wanted, strict=True):
        assert np.abs(ours - theirs).max() < CLOSE
    assert np.abs(found[0][0] - found[1][0]).max() > CLOSE
    assert np.abs(again[0] - found[2][0]).max() < 1e-3
