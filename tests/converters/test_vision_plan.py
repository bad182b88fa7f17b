"""Which towers are planned, and what an inspection says of those that are not."""

from __future__ import annotations

from typing import Any

from converters.inspector import describe
from converters.vision_plan import assess_vision
from tests.converters.headers import header

RUNTIMES = {"onnx", "onnx-cuda", "mlx"}


def clip(projector: str, **keys: Any) -> dict[str, Any]:
    return {"clip.has_vision_encoder": True, "clip.projector_type": projector} | keys


def test_a_kind_that_is_not_known_is_refused_by_name_for_every_runtime() -> None:
    file = header("clip", {"v.class_embd": (8,)}, metadata=clip("resampler"))
    found = describe(file, "0" * 64)
    assert found.projector_type == "resampler"
    reason = "the projector type 'resampler' is not supported yet"
    assert found.vision_refusals == dict.fromkeys(RUNTIMES, reason)
    assert not found.vision_estimates


def test_a_file_without_a_tower_says_nothing_of_one() -> None:
    found = assess_vision(header())
    assert not found.refusals and not found.estimates and not found.projector_type
