"""What is shown of a loaded model: why it runs where it does, and how."""

from __future__ import annotations

import msgspec
import pytest

from backends.types import Loaded
from daemon.residency.lease import NameHold, Resident
from daemon.residency.loaded import describe_loaded
from daemon.residency.placement import Placement
from tests.daemon.residency.shelf import model

ANSWER = Loaded(
    request_id="l", context_length=64, rows=2, resident_bytes=900, load_ns=1, device="cuda"
)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({}, "asked for"),
        ({"numbers": "float16"}, "asked for, computing in float16"),
        (
            {"steps": "decode steps captured, 1.40 times as fast"},
            "asked for; decode steps captured, 1.40 times as fast",
        ),
    ],
)
def test_the_reason_says_how_it_computes_and_decodes(said: dict[str, str], reason: str):
    placement = Placement(backend="onnx", artifact="/a", device="cuda", reason="asked for")
    hold = NameHold(model("a"), 60.0)
    resident = Resident(placement.key(64), placement, 64, hold)
    assert describe_loaded(resident).reason == "asked for"
    resident.loaded = msgspec.structs.replace(ANSWER, **said)
    shown = describe_loaded(resident)
    assert shown.reason == reason
    assert shown.size_vram == shown.size == 900
