"""Which projectors of a folder belong to which weights."""

from __future__ import annotations

import pathlib

import pytest

from daemon.models.foreign.beside import projectors_for
from daemon.models.foreign.scan import FoundFile, identity_of

GEMMA = "gemma-3-4b-it-Q4_K_M.gguf"
QWEN = "Qwen2.5-VL-3B-Instruct-Q8_0.gguf"
FOR_GEMMA = "mmproj-google_gemma-3-4b-it-f16.gguf"
FOR_QWEN = "Qwen2.5-VL-3B-Instruct-mmproj-bf16.gguf"
PLAIN = "mmproj-model-f16.gguf"


def file(name: str, *folder: str) -> FoundFile:
    role = "projector" if "mmproj" in name else "weights"
    return FoundFile(pathlib.Path(name), (*folder, name), identity_of(pathlib.Path()), role)


@pytest.mark.parametrize(
    ("weights", "others", "expected"),
    [
        (GEMMA, [QWEN, FOR_QWEN, FOR_GEMMA], [FOR_GEMMA]),
        (QWEN, [GEMMA, FOR_QWEN, FOR_GEMMA], [FOR_QWEN]),
        (QWEN, [GEMMA, PLAIN, FOR_QWEN], [FOR_QWEN, PLAIN]),
        (GEMMA, [QWEN, FOR_QWEN], []),
        (GEMMA, [FOR_QWEN], [FOR_QWEN]),
        ("llama-3-8b-instruct.gguf", [QWEN, FOR_QWEN], []),
        ("llama-3-8b-instruct.gguf", [QWEN, "mmproj.gguf"], ["mmproj.gguf"]),
    ],
)
def test_by_their_names(weights: str, others: list[str], expected: list[str]) -> None:
    files = [file(name) for name in (weights, *others)]
    found = projectors_for(files[0], [*files, file("mmproj-f32.gguf", "below")])
    assert [one.path.name for one in found] == expected
