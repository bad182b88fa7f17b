"""What else a device is given: rows with states, adapters, models that give vectors."""

from __future__ import annotations

import ctypes
import pathlib
from typing import Any

import numpy as np
import pytest

from backends.onnx import backend, self_test
from backends.onnx.binding import BoundGraph
from backends.onnx.device import Buffer, Device, HostDevice
from backends.onnx.device_plan import GIB, RESERVE_BYTES, check_room, plan_device
from backends.onnx.encoder import OnnxEncoder
from backends.onnx.row_states import DeviceStates
from backends.types import EngineError, Load
from converters.artifact import RowState
from tests.backends.onnx.device_rig import CONTEXT, loaded, on_device
from tests.backends.onnx.engine_rig import ask, ids_of, run, usage_of
from tests.models.random_adapter import make_adapter
from tests.models.random_gguf import make_gguf
from tests.parity.converted import adapted_file, converted_file

PROMPT = tuple(3 + (i * 11) % 600 for i in range(40))


def on_cpu(folder: pathlib.Path, **fields):
    wanted: dict[str, Any] = {"rows": 4, "context_length": CONTEXT, "threads": 1} | fields
    return backend.load(Load(request_id="l", backend="onnx", artifact=str(folder), **wanted))


def answers(engine, count: int) -> dict[str, list[int]]:
    for place in range(count):
        engine.add(ask(f"r{place}", [*PROMPT[place:], 5 + place], 12))
    return {name: ids_of(events) for name, events in run(engine).items()}


def test_a_node_that_a_device_refuses_is_the_devices_fault(
    encoding: pathlib.Path, stateful: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """So the model gets another device: the runtime says it in the first run, not before."""

    def refusing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("QMoE asymmetric zero_points are currently supported only when\nmore")

    monkeypatch.setattr(BoundGraph, "run", refusing)
    monkeypatch.setattr(OnnxEncoder, "_run", refusing)
    for folder in (encoding, stateful):
        with pytest.raises(
            EngineError, match=r"could not run its self-test: .*only when$"
        ) as caught:
            loaded(folder)
        assert caught.value.code == "device"


# ---- states ----


@pytest.fixture(scope="module", params=["lfm2", "qwen35"])
def stateful(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("stateful")
    path = make_gguf(folder / "m.gguf", architecture=request.param, types="Q8_0")
    return converted_file(path, target="onnx-cuda")


def test_a_model_with_states_answers_as_on_the_cpu(stateful: pathlib.Path, tmp_path: pathlib.Path):
    """The self-test has passed on it too, and is kept."""
    engine = on_device(stateful, cache_folder=str(tmp_path))
    assert isinstance(engine._rows.states, DeviceStates)
    assert answers(engine, 4) == answers(on_cpu(stateful), 4)
    assert len(list(tmp_path.rglob("self_test.npy"))) == 1


def test_a_row_with_a_state_begins_anew_and_goes_on(stateful: pathlib.Path):
    engine = on_device(stateful)
    engine.add(ask("one", PROMPT, 6))
    first = ids_of(run(engine)["one"])
    engine.add(ask("other", PROMPT[5:], 6))
    run(engine)
    engine.add(ask("again", PROMPT, 6))
    assert ids_of(run(engine)["again"]) == first
    engine.add(ask("on", [*PROMPT, *first, 9], 6))
    events = run(engine)["on"]
    assert usage_of(events).cached_tokens >= len(PROMPT)
    whole = on_device(stateful)
    whole.add(ask("on", [*PROMPT, *first, 9], 6))
    assert ids_of(run(whole)["on"]) == ids_of(events)


def test_states_follow_rows_that_move(stateful: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    engine, moves = on_device(stateful), []
    whole = DeviceStates.move

    def noted(self: DeviceStates, source: int, target: int) -> None:
        moves.append((source, target))
        whole(self, source, target)

    monkeypatch.setattr(DeviceStates, "move", noted)
    engine._cache._max_idle = 0  # rows of finished requests leave holes
    lengths = {"a": 24, "b": 2, "c": 24}
    for place, (name, tokens) in enumerate(lengths.items()):
        engine.add(ask(name, PROMPT[place:], tokens))
    together = {name: ids_of(events) for name, events in run(engine).items()}
    assert moves
    for place, (name, tokens) in enumerate(lengths.items()):
        alone = on_device(stateful)
        alone.add(ask(name, PROMPT[place:], tokens))
        assert ids_of(run(alone)[name]) == together[name]


STATES = [
    RowState(past="past_a.0", present="present_a.0", shape=(2, 3)),
    RowState(past="past_b.0", present="present_b.0", shape=(5,)),
    RowState(past="past_a.1", present="present_a.1", shape=(3, 2)),
]


def cells(address: int, shape: tuple[int, ...]) -> np.ndarray:
    pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
    return np.ctypeslib.as_array(pointer, shape)


def test_states_of_one_size_are_committed_together_and_to_their_rows():
    class Counted(HostDevice):
        copies = 0

        def copy(self, *given, **named) -> None:
            self.copies += 1
            super().copy(*given, **named)

    device = Counted()
    states = DeviceStates(STATES, device, rows=5, most_rows=2)
    views = {view.past: view for view in states.views(3, 2)}
    assert views.keys() == {state.past for state in STATES}
    for number, view in enumerate(views.values(), 1):
        cells(view.present_address, view.shape)[...] = number
    states.commit(3, 2)
    assert device.copies == 2  # of two sizes
    for number, view in enumerate(views.values(), 1):
        assert (cells(view.past_address, view.shape)[0] == number).all()
    states.move(3, 1)
    moved = {view.past: view for view in states.views(1, 1)}
    for number, view in enumerate(moved.values(), 1):
        assert (cells(view.past_address, view.shape) == number).all()
    states.clear(3)
    for view in views.values():
        assert not cells(view.past_address, view.shape)[0].any()
        assert cells(view.past_address, view.shape)[1].any()
    for view in states.views(0, 1):
        assert not cells(view.past_address, view.shape).any()


def test_states_count_when_rows_are_planned():
    facts: dict[str, Any] = {
        "weight_bytes": GIB,
        "row_bytes": GIB // 8,
        "planes": 8,
        "rows": 4,
        "most_idle": 14,
    }
    without = plan_device(8 * GIB, **facts)
    with_states = plan_device(8 * GIB, **facts, state_bytes=GIB // 4)
    assert with_states.rows < without.rows
    needed = with_states.rows * (GIB // 8 + GIB // 64 + 2 * (GIB // 4))
    assert needed + GIB + RESERVE_BYTES <= 8 * GIB


# ---- adapters ----


def test_an_adapter_changes_what_a_device_says_as_on_the_cpu(tmp_path: pathlib.Path):
    path = make_gguf(tmp_path / "m.gguf", types="Q8_0")
    half = converted_file(path, target="onnx-cuda")
    adapter = str(
        adapted_file(make_adapter(tmp_path / "l.gguf", path), path, half, target="onnx-cuda")
    )
    cache = str(tmp_path / "cache")
    adapted = on_device(half, adapters=(adapter,), cache_folder=cache)
    assert adapted.capabilities.adapters
    plain = on_device(half, cache_folder=cache)
    assert adapted.capabilities.device_bytes > plain.capabilities.device_bytes
    said = answers(adapted, 2)
    assert said == answers(on_cpu(half, adapters=(adapter,)), 2)
    assert said != answers(plain, 2)
    # What the CPU says of one must not be taken for the other's.
    assert len(list((tmp_path / "cache").rglob("self_test*.npy"))) == 2


# ---- vectors ----

TEXTS = [tuple(3 + (i * 7 + n) % 500 for i in range(n)) for n in (5, 60, 2, 33)]


@pytest.fixture(scope="module", params=["bert", "nomic-bert", "qwen3-embedding", "bert-rank"])
def encoding(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("encoder") / "m.gguf"
    kv_heads = 4 if "bert" in request.param else 2
    make_gguf(path, architecture=request.param, types="Q8_0", kv_heads=kv_heads)
    return converted_file(path, target="onnx-cuda")


def vectors(encoder) -> np.ndarray:
    return np.stack([np.frombuffer(vector, "<f4") for vector in encoder.embed(TEXTS)])


def test_vectors_of_a_device_are_those_of_the_cpu(encoding: pathlib.Path, tmp_path: pathlib.Path):
    encoder = loaded(encoding, cache_folder=str(tmp_path))
    assert isinstance(encoder, OnnxEncoder)
    assert encoder.capabilities.device == "host" and encoder.capabilities.device_bytes > 0
    assert np.allclose(vectors(encoder), vectors(on_cpu(encoding)), atol=1e-3)
    assert encoder.capabilities.steps == ""


def test_a_device_that_gives_other_vectors_is_refused(
    encoding: pathlib.Path, tmp_path: pathlib.Path
):
    loaded(encoding, cache_folder=str(tmp_path))
    (kept,) = tmp_path.rglob("self_test.npy")
    expected = np.load(kept)
    np.save(
        kept,
        expected
        + 5
        * np.abs(expected).max()
        * np.sign(np.arange(expected.size) % 2 - 0.5).reshape(expected.shape),
    )
    with pytest.raises(EngineError, match="vectors that are") as caught:
        loaded(encoding, cache_folder=str(tmp_path))
    assert caught.value.code == "device"
    np.save(kept, expected[:1])  # of another version of the test
    loaded(encoding, cache_folder=str(tmp_path))
    assert np.load(kept).shape == expected.shape


def test_what_is_compared_of_vectors():
    generator = np.random.default_rng(3)
    expected = generator.standard_normal((2, 64)).astype(np.float32)
    assert self_test.compare_vectors(3 * expected, expected) < 1e-6
    for wrong in (np.roll(expected, 1, axis=1), expected * np.nan, expected[:, :32]):
        with pytest.raises(EngineError):
            self_test.compare_vectors(wrong.astype(np.float32), expected)
    scores = np.array([[0.001], [-3.0]], np.float32)
    assert self_test.compare_vectors(scores + np.float32(0.004), scores) < 0.005
    with pytest.raises(EngineError):
        self_test.compare_vectors(scores * np.float32(1.1), scores)


def test_a_device_without_room_for_an_encoder_says_so(encoding: pathlib.Path):
    class Small(HostDevice):
        def memory(self) -> tuple[int, int]:
            return GIB // 4, GIB

    with pytest.raises(EngineError, match="GiB free and the model needs") as caught:
        loaded(encoding, Small())
    assert caught.value.code == "device"
    check_room(2 * GIB, weight_bytes=GIB)


def test_every_kind_fails_by_the_device_where_it_gives_no_memory(stateful: pathlib.Path):
    class Full(HostDevice):
        def allocate(self, size: int) -> Buffer:
            raise EngineError("device", "full")

    device: Device = Full()
    with pytest.raises(EngineError) as caught:
        loaded(stateful, device)
    assert caught.value.code == "device"
