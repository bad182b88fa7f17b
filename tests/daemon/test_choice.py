"""The choice of a backend over time: a device that failed is passed over, and tried again."""

from __future__ import annotations

import pathlib
from typing import Any, cast

import msgspec
import pytest

from backends.select import Machine, RuntimeFacts
from converters.inspection import Inspection
from daemon.avoidance import FIRST_WAIT_SECONDS, FORGOTTEN_SECONDS, LONGEST_WAIT_SECONDS, Avoidance
from daemon.choice import BackendChoice
from daemon.errors import LoadFailed
from daemon.models.resolved import BlobFile, ResolvedModel
from tests.daemon.residency.shelf import model

DIGEST = "a" * 64
CUDA = RuntimeFacts(name="onnx", version="1.31.1", devices=("cuda", "cpu"))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Shelf:
    """The part of `Conversions` that is asked."""

    async def inspect(self, digest: str) -> Inspection:
        return Inspection(digest=digest, size=4)


async def machine() -> Machine:
    return Machine(system="Linux", processor="x86_64", runtimes=(CUDA,))


def chooser(avoidance: Avoidance, wanted: str = "auto") -> BackendChoice:
    return BackendChoice(cast(Any, Shelf()), wanted, machine, avoidance)


@pytest.fixture
def weights(tmp_path: pathlib.Path) -> ResolvedModel:
    (tmp_path / "blob").write_bytes(b"GGUF")
    return msgspec.structs.replace(model("m"), weights=BlobFile(DIGEST, tmp_path / "blob", 4))


async def test_a_device_that_failed_is_passed_over_for_a_while(weights: ResolvedModel):
    clock = Clock()
    choice = chooser(Avoidance(clock))
    assert (await choice.for_model(weights)).device == "cuda"
    choice.remember_failure(DIGEST, "onnx-cuda", "the GPU has no room")
    found = await choice.for_model(weights)
    assert found.device == "cpu"
    assert found.reason == (
        "ONNX Runtime 1.31.1 on cpu (MLX: meant for Apple silicon; ONNX Runtime on CUDA: "
        "the GPU has no room (tried again after 10 min))"
    )
    clock.now += FIRST_WAIT_SECONDS
    assert (await choice.for_model(weights)).device == "cuda"
    await choice.close()


async def test_where_nothing_else_is_wanted_the_reason_is_the_answer(weights: ResolvedModel):
    choice = chooser(Avoidance(Clock()), "onnx-cuda")
    choice.remember_failure(DIGEST, "onnx-cuda", "the GPU has no room")
    with pytest.raises(LoadFailed, match="no room"):
        await choice.for_model(weights)
    await choice.close()


async def test_models_with_adapters_are_for_the_gpu_too(weights: ResolvedModel):
    adapters = (BlobFile("b" * 64, weights.require_weights().path, 4),)
    adapted = msgspec.structs.replace(weights, adapters=adapters)
    choice = chooser(Avoidance(Clock()))
    assert (await choice.for_model(adapted)).device == "cuda"
    await choice.close()


def waits(avoidance: Avoidance, clock: Clock, source: str = "s") -> float:
    """Seconds until the device is tried again, to the minute."""
    begin = clock.now
    while avoidance.reasons(source):
        clock.now += 60.0
    return clock.now - begin


def test_it_waits_longer_each_time_and_forgets_in_a_day():
    clock = Clock()
    avoidance = Avoidance(clock)
    found: list[float] = []
    for _ in range(8):
        avoidance.remember("s", "onnx-cuda", "no")
        found.append(waits(avoidance, clock))
    assert found[:3] == [FIRST_WAIT_SECONDS, 2 * FIRST_WAIT_SECONDS, 4 * FIRST_WAIT_SECONDS]
    assert found[-1] == LONGEST_WAIT_SECONDS
    clock.now += FORGOTTEN_SECONDS
    avoidance.remember("s", "onnx-cuda", "no")
    assert waits(avoidance, clock) == FIRST_WAIT_SECONDS


def test_memory_that_is_given_back_is_tried_at_once_but_only_once():
    avoidance = Avoidance(Clock())
    avoidance.remember("s", "onnx-cuda", "no room")
    avoidance.gave_back("onnx-cpu")
    assert avoidance.reasons("s").keys() == {"onnx-cuda"}
    avoidance.gave_back("onnx-cuda")
    assert avoidance.reasons("s") == {}
    avoidance.remember("s", "onnx-cuda", "wrong numbers")
    avoidance.gave_back("onnx-cuda")
    assert avoidance.reasons("s") == {"onnx-cuda": "wrong numbers (tried again after 20 min)"}


def test_other_weights_are_not_concerned():
    avoidance = Avoidance(Clock())
    avoidance.remember("s", "onnx-cuda", "no")
    assert avoidance.reasons("t") == {}
