"""Decode steps on fixed addresses, and recording them: all but the recording itself, which the CPU's
provider passes over. So ids and numbers are those of steps that were never recorded."""

from __future__ import annotations

import ctypes
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from backends.onnx import capture_trial, device_session
from backends.onnx.binding import BoundGraph
from backends.onnx.capture_trial import STEPS, obstacle_to_capture, try_capture
from backends.onnx.device import HostDevice
from backends.onnx.device_session import cuda_options, open_device_session
from backends.onnx.device_steps import EAGER_STEPS, MOST_CAPTURES, DeviceSteps
from backends.onnx.engine import OnnxEngine
from backends.types import EngineError
from converters.artifact import read_artifact
from tests.backends.onnx.device_rig import CONTEXT, on_device
from tests.backends.onnx.engine_rig import EXACT, ask, ids_of, run
from tests.models.random_gguf import make_gguf
from tests.parity.converted import converted_file

PROMPT = tuple(3 + (i * 11) % 600 for i in range(40))


@pytest.fixture(scope="module", params=["llama", "lfm2", "mistral3"])
def half(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    make_gguf(path, architecture=request.param, types="Q8_0")
    return converted_file(path, target="onnx-cuda")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = make_gguf(tmp_path_factory.mktemp("model") / "m.gguf", types="Q8_0")
    return converted_file(path, target="onnx-cuda")


class Tape:
    """The session of an engine, which notes the ids of recordings; `breaks` makes them fail, and
    `lies` makes them say nothing."""

    def __init__(self, steps: DeviceSteps) -> None:
        self._inner: Any = steps._session
        self._said = steps._said._buffer
        self.lies = False
        steps._session = self  # type: ignore[assignment]
        self.ids: list[int] = []
        self.released: list[int] = []
        self.breaks = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
        identity = int(options.get_run_config_entry("gpu_graph_id"))
        if identity >= 0 and self.breaks:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.ids.append(identity)
        self._inner.run_with_iobinding(binding, options)
        if identity >= 0 and self.lies:
            ctypes.memset(self._said.address, 0, self._said.size)

    def release_captured_graph(self, identity: int) -> None:
        self.released.append(identity)


def taped(engine: OnnxEngine, *, is_capturing: bool = True) -> tuple[DeviceSteps, Tape]:
    assert engine._graph is not None and engine._graph.steps is not None
    steps = engine._graph.steps
    steps.forget()  # what the trial at the load may have kept
    steps.is_capturing = is_capturing
    return steps, Tape(steps)


def answers(engine: OnnxEngine, count: int, tokens: int = 16) -> dict[str, list[int]]:
    for place in range(count):
        engine.add(ask(f"r{place}", [*PROMPT[place:], 5 + place], tokens, sampling=EXACT))
    return {name: ids_of(events) for name, events in run(engine).items()}


def test_recorded_steps_say_what_others_do(half: pathlib.Path):
    plain, recorded = on_device(half), on_device(half)
    _, tape = taped(recorded)
    for count in (1, 3):
        assert answers(recorded, count) == answers(plain, count)
    recorded_as = [identity for identity in dict.fromkeys(tape.ids) if identity >= 0]
    assert len(recorded_as) >= 2
    first = tape.ids.index(recorded_as[0])
    assert tape.ids[:first].count(-1) >= EAGER_STEPS
    assert tape.ids[first : first + 8] == recorded_as[:1] * 8


def test_a_recording_knows_no_length(llama: pathlib.Path):
    """What it binds on the host is as much as a row can hold, and stays that."""
    engine = on_device(llama)
    steps, _ = taped(engine)
    answers(engine, 2)
    assert steps.captures and int(steps._capacity) == engine._rows.stride
    assert int(steps._longest) < int(steps._capacity)


def test_rows_that_grow_lose_their_recordings(llama: pathlib.Path):
    engine, plain = on_device(llama), on_device(llama)
    steps, tape = taped(engine)
    long = ask("long", [3 + n % 500 for n in range(250)], 40, sampling=EXACT)
    engine.add(long)
    plain.add(long)
    assert engine._rows.stride == 256
    assert ids_of(run(engine)["long"]) == ids_of(run(plain)["long"])
    assert engine._rows.stride == CONTEXT
    used = [identity for identity in dict.fromkeys(tape.ids) if identity >= 0]
    assert tape.released and used[-1] > tape.released[-1]
    assert steps.captures == 1


def test_recordings_are_bounded(llama: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("backends.onnx.device_steps.MOST_CAPTURES", 2)
    engine = on_device(llama)
    steps, tape = taped(engine)
    for count in (1, 2, 3, 4):
        answers(engine, count)
    assert steps.captures == 2 < MOST_CAPTURES
    assert len(tape.released) >= 1 and len(set(tape.released)) == len(tape.released)


def test_a_recording_that_fails_costs_no_answer(
    llama: pathlib.Path, caplog: pytest.LogCaptureFixture
):
    engine = on_device(llama)
    steps, tape = taped(engine)
    tape.breaks = True
    assert answers(engine, 1) == answers(on_device(llama), 1)
    assert not steps.is_capturing and steps.captures == 0
    assert caplog.text.count("capturing failed") == 1


def test_a_recording_that_says_something_else_costs_no_answer(
    half: pathlib.Path, caplog: pytest.LogCaptureFixture
):
    """Each is compared with the step itself when it is made, whatever the trial found."""
    engine = on_device(half)
    steps, tape = taped(engine)
    tape.lies = True
    assert answers(engine, 2) == answers(on_device(half), 2)
    assert not steps.is_capturing and "something else" in steps.problem
    assert caplog.text.count("not captured any more") == 1


def test_a_chunk_is_scored_at_one_place_at_least(
    llama: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """CUDA's kernel for experts refuses a run over no ids."""
    engine, lines = on_device(llama), []
    whole = BoundGraph._bind_small

    def noted(self: BoundGraph, binding: Any, embeddings: Any, count: int, wanted: int) -> None:
        lines.append(wanted)
        whole(self, binding, embeddings, count, wanted)

    monkeypatch.setattr(BoundGraph, "_bind_small", noted)
    engine.add(ask("r", [3 + n % 500 for n in range(300)], 2))
    run(engine)
    assert len(lines) > 1 and min(lines) == 1


def test_hidden_states_of_a_single_id_are_read_when_asked_for(llama: pathlib.Path):
    engine = on_device(llama)
    (vector,) = engine.embed([(5,)])
    (longer,) = engine.embed([(7, 5)])
    found = np.frombuffer(vector, "<f4")
    assert found.any() and not np.array_equal(found, np.frombuffer(longer, "<f4"))


# ---- the trial ----


def parts(engine: OnnxEngine) -> tuple[Any, ...]:
    assert engine._graph is not None and engine._graph.steps is not None
    engine._graph.steps.forget()
    engine._graph.steps.is_capturing = False
    vocabulary = engine.capabilities.vocabulary
    return engine._graph, engine._rows, engine._embedding, vocabulary


def ticking(seconds: list[float]) -> Iterator[float]:
    """Times of a clock that is read before and after each step."""
    now = 0.0
    for each in seconds:
        yield now
        now += each
        yield now


def clock_of(plain: float, captured: float, passes: int = 3) -> Any:
    times = itertools.chain([plain] * STEPS, [captured] * STEPS * passes)
    return ticking(list(times)).__next__


def test_steps_that_gain_are_kept(llama: pathlib.Path, tmp_path: pathlib.Path):
    engine = on_device(llama)
    graph, *rest = parts(engine)
    words = try_capture(graph, *rest, folder=tmp_path, clock=clock_of(0.02, 0.01))
    assert words == "decode steps captured, 2.00 times as fast"
    assert graph.steps.is_capturing
    assert not list(tmp_path.iterdir()) and obstacle_to_capture(tmp_path) == ""
    assert engine._rows.is_quiet


@pytest.mark.parametrize(("captured", "words"), [(0.02, "1.00 times"), (0.04, "0.50 times")])
def test_steps_that_do_not_gain_stay_as_they_are(llama: pathlib.Path, captured: float, words: str):
    engine = on_device(llama)
    graph, *rest = parts(engine)
    said = try_capture(graph, *rest, clock=clock_of(0.02, captured))
    assert said == f"decode steps not captured (that is {words} as fast)"
    assert not graph.steps.is_capturing and graph.steps.captures == 0


def test_captured_steps_that_say_something_else_are_not_kept(
    llama: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    engine = on_device(llama)
    graph, *rest = parts(engine)
    whole = BoundGraph.run

    def wrong(self: BoundGraph, *given: Any) -> Any:
        scores = whole(self, *given)
        if graph.steps.is_capturing and len(given[3]):
            scores = scores._replace(logits=np.array(scores.logits[0])[None, ::-1])
        return scores

    monkeypatch.setattr(BoundGraph, "run", wrong)
    assert "numbers differ" in try_capture(graph, *rest, clock=clock_of(0.02, 0.01))
    assert not graph.steps.is_capturing


def test_a_trial_that_fails_says_so_and_leaves_the_engine_working(
    llama: pathlib.Path, tmp_path: pathlib.Path
):
    engine = on_device(llama)
    _, tape = taped(engine, is_capturing=False)
    tape.breaks = True
    graph, *rest = parts(engine)
    words = try_capture(graph, *rest, folder=tmp_path)
    assert words == (
        "decode steps not captured (capturing failed: operation not permitted when stream is "
        "capturing)"
    )
    assert answers(engine, 2) == answers(on_device(llama), 2)


def test_a_device_that_is_lost_in_a_trial_fails_the_load(
    llama: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """What the trial left is found by the next load, for a day."""
    engine = on_device(llama)
    graph, *rest = parts(engine)

    def lost(*_: Any) -> Any:
        raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

    monkeypatch.setattr(graph, "run", lost)
    with pytest.raises(EngineError, match="while capturing was tried") as caught:
        try_capture(graph, *rest, folder=tmp_path)
    assert caught.value.code == "device"
    assert obstacle_to_capture(tmp_path) == "the last trial of it did not come to an end"
    monkeypatch.setattr(capture_trial, "MARKER_SECONDS", 0.0)
    assert obstacle_to_capture(tmp_path) == ""


def test_what_a_trial_left_keeps_the_next_load_from_it(llama: pathlib.Path, tmp_path: pathlib.Path):
    first = on_device(llama, cache_folder=str(tmp_path))
    assert first.capabilities.steps.startswith("decode steps ")
    (kept,) = tmp_path.rglob("self_test.npy")
    (kept.parent / "capture.begun").touch()
    engine = on_device(llama, cache_folder=str(tmp_path))
    assert engine.capabilities.steps == (
        "decode steps not captured (the last trial of it did not come to an end)"
    )


def test_older_runtimes_are_not_asked_to_record():
    assert obstacle_to_capture(None, "1.26.0") == "ONNX Runtime 1.26.0 is too old for it"
    assert obstacle_to_capture(None, "1.32.0") == ""


# ---- the session ----


class Cuda(HostDevice):
    word = "cuda"


def test_a_graph_that_cannot_be_recorded_is_opened_without(
    llama: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[bool] = []

    def refusing(_folder: Any, _adapter: Any, *, has_graphs: bool) -> str:
        asked.append(has_graphs)
        if has_graphs:
            raise EngineError("device", "This session cannot use the graph capture feature as ...")
        return "session"

    monkeypatch.setattr(device_session, "_open", refusing)
    monkeypatch.setattr(device_session, "preload", lambda: None)
    artifact = read_artifact(llama)
    opened = open_device_session(Cuda(), llama, artifact)
    assert asked == [True, False]
    assert opened == ("session", "the runtime cannot record this graph")
    assert open_device_session(Cuda(), llama, artifact, obstacle="no").obstacle == "no"
    assert asked == [True, False, False]


def test_other_failures_of_the_session_are_not_hidden(
    llama: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    def failing(*_: Any, has_graphs: bool) -> str:
        raise EngineError("device", "out of memory")

    monkeypatch.setattr(device_session, "_open", failing)
    monkeypatch.setattr(device_session, "preload", lambda: None)
    with pytest.raises(EngineError, match="out of memory"):
        open_device_session(Cuda(), llama, read_artifact(llama))


def test_what_the_provider_is_asked_for():
    assert cuda_options(has_graphs=True)["enable_cuda_graph"] == "1"
    assert cuda_options()["enable_cuda_graph"] == "0"
    assert set(cuda_options()["use_tf32"]) == {"0"}
