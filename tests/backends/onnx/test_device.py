"""The path of a GPU, run in the machine's own memory: the same graph in fp16, buffers, row moves,
growth, lazy logits and self-test; only the kernels and the copies are another's."""

from __future__ import annotations

import ctypes
import pathlib

import numpy as np
import pytest

from backends.onnx import backend, self_test
from backends.onnx.binding import BoundGraph
from backends.onnx.cuda_driver import CudaDriver
from backends.onnx.device import Buffer, CudaDevice, HostDevice, open_device
from backends.onnx.device_plan import GIB, RESERVE_BYTES, plan_device
from backends.onnx.device_planes import DevicePlanes
from backends.onnx.engine import OnnxEngine
from backends.onnx.planes import Plane
from backends.onnx.rows import KeyValueRows
from backends.onnx.scores import DeviceLines
from backends.types import EngineError, Load, Sampled, Sampling
from converters.artifact import read_artifact
from tests.backends.onnx.device_rig import CONTEXT, on_device
from tests.backends.onnx.engine_rig import GREEDY, ask, ids_of, run, usage_of
from tests.backends.onnx.fake_driver import FakeLibrary
from tests.models.random_gguf import make_gguf
from tests.parity.converted import converted_file

PROMPT = tuple(3 + (i * 11) % 600 for i in range(40))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return make_gguf(tmp_path_factory.mktemp("model") / "m.gguf", types="Q4_K")


@pytest.fixture(scope="module")
def half(model: pathlib.Path) -> pathlib.Path:
    return converted_file(model, target="onnx-cuda")


def requests(count: int, **fields) -> list:
    return [ask(f"r{n}", [*PROMPT[n:], 5 + n], 12, **fields) for n in range(count)]


def answers(engine: OnnxEngine, count: int, **fields) -> dict[str, list[int]]:
    for request in requests(count, **fields):
        engine.add(request)
    return {name: ids_of(events) for name, events in run(engine).items()}


def test_it_answers_as_the_cpu_does_from_the_same_artifact(half: pathlib.Path):
    host = backend.load(
        Load(request_id="l", backend="onnx", artifact=str(half), rows=4, context_length=CONTEXT)
    )
    assert isinstance(host, OnnxEngine)
    engine = on_device(half)
    assert engine.capabilities.device == "host" and engine.capabilities.device_bytes > 0
    assert answers(engine, 4) == answers(host, 4)


def test_it_answers_as_the_fp32_graph_does(model: pathlib.Path, half: pathlib.Path):
    full = backend.load(
        Load(
            request_id="l", backend="onnx", artifact=str(converted_file(model, precise=True)),
            rows=4, context_length=CONTEXT,
        )
    )  # fmt: skip
    assert isinstance(full, OnnxEngine)
    assert answers(on_device(half), 2) == answers(full, 2)


def test_rows_grow_while_requests_run(half: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """Rows begin with 256 positions; the long request makes all of them longer."""
    engine = on_device(half)
    assert engine._rows._store.stride == 256
    long = ask("long", [3 + n % 500 for n in range(250)], 60)
    short = ask("short", PROMPT, 60)
    alone = on_device(half)
    alone.add(short)
    expected = ids_of(run(alone)["short"])
    engine.add(short)
    engine.add(long)
    events = run(engine)
    assert engine._rows._store.stride == CONTEXT
    assert ids_of(events["short"]) == expected
    assert len(ids_of(events["long"])) == 60


def test_a_kept_prefix_serves_another_request(half: pathlib.Path):
    engine = on_device(half)
    engine.add(ask("one", PROMPT, 4))
    first = ids_of(run(engine)["one"])
    engine.add(ask("two", PROMPT, 4))
    events = run(engine)
    assert ids_of(events["two"]) == first
    assert usage_of(events["two"]).cached_tokens > 30
    engine.add(ask("other", [*PROMPT[:30], 9], 4))
    engine.add(ask("three", PROMPT, 4))
    events = run(engine)
    assert usage_of(events["other"]).cached_tokens >= 29
    assert ids_of(events["three"]) == first


def test_logits_are_read_only_when_they_are_wanted(
    half: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    engine, reads = on_device(half), []
    whole = DeviceLines.__getitem__

    def counted(self: DeviceLines, place: int, /) -> np.ndarray:
        reads.append(place)
        return whole(self, place)

    monkeypatch.setattr(DeviceLines, "__getitem__", counted)
    assert len(answers(engine, 2)["r0"]) == 12
    assert reads == []
    answers(engine, 2, sampling=Sampling(temperature=1.0, top_k=0, top_p=1.0, seed=3))
    assert reads


def test_logprobs_come_with_the_ids(half: pathlib.Path):
    engine = on_device(half)
    engine.add(ask("r", PROMPT, 3, sampling=GREEDY, top_logprobs=2))
    sampled = [event for event in run(engine)["r"] if isinstance(event, Sampled)]
    assert sampled and all(event.logprob == event.top[0][1] for event in sampled)


# ---- rows and their memory ----

PLANES = [
    Plane("past_key.0", "present_key.0", 2, 16),
    Plane("past_value.0", "present_value.0", 2, 8),
]


def device_rows(device, rows: int = 4, capacity: int = 64, first: int = 8) -> KeyValueRows:
    dtype = np.dtype(np.float16)
    store = DevicePlanes(
        PLANES, device, rows=rows, capacity=capacity, dtype=dtype, first_positions=first
    )
    return KeyValueRows(
        PLANES, rows=rows, capacity=capacity, dtype=dtype, budget_bytes=1 << 30, store=store
    )


def cells(rows: KeyValueRows, index: int, plane: int) -> np.ndarray:
    view = list(rows.views(index, 1))[plane]
    count = int(np.prod(view.shape))
    pointer = ctypes.cast(view.address, ctypes.POINTER(ctypes.c_uint16))
    whole = np.ctypeslib.as_array(pointer, (count,)).view(np.float16)
    return whole.reshape(view.shape)[0]


class FakeCuda(CudaDevice):
    """CUDA's own code over a driver that works on the host's memory."""

    word = "cpu"  # type: ignore[assignment]

    def __init__(self) -> None:
        self.library = FakeLibrary()
        super().__init__(CudaDriver(self.library))


@pytest.mark.parametrize("make", [HostDevice, FakeCuda])
def test_what_rows_hold_survives_growth_copies_and_moves(make: type):
    rows = device_rows(make())
    taken = [rows.take(64) for _ in range(3)]
    random = np.random.default_rng(3)
    held: dict[int, list[np.ndarray]] = {}
    for row in taken:
        assert row is not None
        row.advance(6)
        held[row.index] = []
        for plane in range(2):
            part = cells(rows, row.index, plane)[:, :6]
            part[...] = random.standard_normal(part.shape)
            held[row.index].append(part.copy())
    assert not rows.reserve(8) and rows.reserve(20)
    for index, planes in held.items():
        for plane, expected in enumerate(planes):
            grown = cells(rows, index, plane)
            assert grown.shape[1] == 32
            assert np.array_equal(grown[:, :6], expected)
            assert not grown[:, 6:].any()
    first, second, third = taken
    assert first and second and third
    fresh = rows.take(64)
    assert fresh is not None
    rows.copy_prefix(second, fresh, 5, 1 << 20)
    assert np.array_equal(cells(rows, fresh.index, 0)[:, :5], held[1][0][:, :5])
    rows.release(fresh)
    rows.release(second)
    rows.compact([first, third], 1 << 20)
    assert third.index == 1
    assert np.array_equal(cells(rows, 1, 1)[:, :6], held[2][1])
    rows.close()


def test_a_move_that_was_begun_is_not_lost_by_growth():
    rows = device_rows(HostDevice())
    first, second, third = (rows.take(64) for _ in range(3))
    assert first and second and third
    third.advance(8)
    cells(rows, 2, 0)[:, :8] = 7
    rows.release(second)
    rows.compact([first, third], rows.position_bytes * 4)
    assert third.target == 1 and third.copied == 4
    assert rows.reserve(16)
    rows.compact([first, third], 1 << 20)
    assert third.index == 1
    assert (cells(rows, 1, 0)[:, :8] == 7).all()


def test_a_device_without_room_is_named():
    class Full(HostDevice):
        def allocate(self, size: int) -> Buffer:
            raise EngineError("device", "full")

    with pytest.raises(EngineError) as caught:
        device_rows(Full())
    assert caught.value.code == "device"


# ---- what is checked before anything is used ----


@pytest.mark.parametrize(
    ("free", "expected"),
    [(24 * GIB, (4, 14)), (8 * GIB, (4, 1)), (6 * GIB, (1, 1)), (7 * GIB, (3, 0))],
)
def test_the_plan_takes_what_fits(free: int, expected: tuple[int, int]):
    plan = plan_device(
        free, weight_bytes=4 * GIB, row_bytes=GIB // 2, planes=32, rows=4, most_idle=14
    )
    assert (plan.active, plan.idle) == expected
    assert plan.rows * (GIB // 2 + GIB // 64) + 4 * GIB + RESERVE_BYTES <= free


def test_a_model_that_does_not_fit_says_what_is_missing():
    with pytest.raises(EngineError) as caught:
        plan_device(4 * GIB, weight_bytes=5 * GIB, row_bytes=GIB, planes=4, rows=1, most_idle=0)
    assert caught.value.code == "device"
    assert str(caught.value) == (
        "the GPU has 4.0 GiB free and the model needs 7.0 GiB (5.0 GiB for weights, 1.2 GiB for one "
        "context)"
    )


def test_a_device_that_computes_something_else_is_refused(
    half: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """What is kept of the CPU's numbers is what the next load is compared with."""
    on_device(half, cache_folder=str(tmp_path))
    (kept,) = tmp_path.rglob("self_test.npy")
    logits = np.load(kept)
    assert logits.shape == (self_test.LINES, read_artifact(half).vocabulary)
    np.save(kept, -logits)
    with pytest.raises(EngineError) as caught:
        on_device(half, cache_folder=str(tmp_path))
    assert caught.value.code == "device" and "differs from the CPU by 2" in str(caught.value)
    kept.write_bytes(b"not an array")
    on_device(half, cache_folder=str(tmp_path))
    assert np.array_equal(np.load(kept), logits)


@pytest.mark.parametrize("rows", [1, 4])
def test_rows_that_decode_together_are_tried_too(
    half: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, rows: int
):
    """A device that mixes them up is refused, unless it has room for one row only."""
    on_device(half, cache_folder=str(tmp_path), rows=rows)
    whole = BoundGraph.run

    def mixed_up(self: BoundGraph, first: int, embeddings, totals, wanted):
        if len(totals) > 1:
            embeddings = np.ascontiguousarray(embeddings[::-1])
        return whole(self, first, embeddings, totals, wanted)

    monkeypatch.setattr(BoundGraph, "run", mixed_up)
    if rows == 1:
        on_device(half, cache_folder=str(tmp_path), rows=rows)
        return
    with pytest.raises(EngineError, match="differs from the CPU"):
        on_device(half, cache_folder=str(tmp_path), rows=rows)


def test_the_self_test_sees_what_it_must():
    expected = np.random.default_rng(1).standard_normal((3, 500)).astype(np.float32)
    noise = np.random.default_rng(2).standard_normal((3, 500)).astype(np.float32)
    near = (expected + 0.01 * noise).astype(np.float32)
    assert self_test.compare(near, expected) == pytest.approx(0.01, rel=0.2)
    for wrong in (expected + 0.2 * noise, np.roll(expected, 1, axis=1), expected * np.inf):
        with pytest.raises(EngineError):
            self_test.compare(wrong.astype(np.float32), expected)


def test_cuda_where_there_is_none_is_the_devices_fault(half: pathlib.Path):
    """The worker says so with a code of its own, and the daemon takes another device."""
    if (pathlib.Path("/dev") / "nvidiactl").exists():
        pytest.skip("a GPU may be here")
    with pytest.raises(EngineError) as caught:
        open_device("cuda")
    assert caught.value.code == "device"
    with pytest.raises(EngineError) as caught:
        open_device("tpu")
    assert caught.value.code == "unsupported"
