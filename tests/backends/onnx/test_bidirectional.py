"""Images whose positions see each other: one run each, never cut, and right for whoever goes on from them.

That the numbers are right is `tests/parity/test_seen_engine.py`.
"""

from __future__ import annotations

import pathlib

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from backends.image_span import ImageSpan
from backends.onnx import engine as engine_module
from backends.onnx.bidirectional import BidirectionalRuns, window_bias
from backends.onnx.embedding import input_table
from backends.onnx.engine import OnnxEngine
from backends.onnx.images import causal_left, open_span
from backends.onnx.open_masks import bias_input, open_masks
from backends.onnx.planes import Plane
from backends.onnx.rows import KeyValueRows
from backends.types import EngineError, GenerateRequest, Load, Sampled
from converters.artifact import GRAPH_FILE, RowState, read_artifact
from tests.backends.onnx.device_rig import on_device
from tests.backends.onnx.engine_rig import EXACT, answer, ask, ids_of, load, run, step_until_sampled
from tests.backends.onnx.tiny_artifact import EMBEDDING, write_tiny_artifact

CONTEXT = 1024


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_artifact(folder, context_length=CONTEXT, accuracy_level=0)
    return folder


def seeing(artifact: pathlib.Path, **fields) -> OnnxEngine:
    return load(artifact, context_length=CONTEXT, **fields)


def image(start: int, length: int, *, is_bidirectional: bool = True) -> ImageSpan:
    vectors = np.random.default_rng(length).standard_normal((length, EMBEDDING), np.float32)
    return ImageSpan(
        start=start, length=length, embeddings=vectors.tobytes(), is_bidirectional=is_bidirectional
    )


def shown(name: str, length: int, *images: ImageSpan, seed: int = 0, **fields) -> GenerateRequest:
    ids = [20 + (7 * place + seed) % 200 for place in range(length)]
    for span in images:
        ids[span.start : span.start + span.length] = [-span.length] * span.length
    return ask(name, ids, images=images, top_logprobs=5, **fields)


def told(engine: OnnxEngine, request: GenerateRequest) -> list[Sampled]:
    engine.add(request)
    return [event for event in run(engine)[request.request_id] if isinstance(event, Sampled)]


def assert_alike(found: list[Sampled], expected: list[Sampled]) -> None:
    assert [event.token_id for event in found] == [event.token_id for event in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=0.01)


def test_where_runs_begin_and_end():
    images = (image(5, 10), image(15, 4), image(30, 6, is_bidirectional=False), image(50, 1))
    assert open_span(images, 5) is images[0]
    assert open_span(images, 15) is images[1]
    assert [open_span(images, place) for place in (0, 6, 30, 50)] == [None] * 4
    assert [causal_left(images, place, 90) for place in (0, 3, 19, 55)] == [5, 2, 90, 90]
    assert causal_left(images, 0, 3) == 3


def test_positions_see_each_other(artifact: pathlib.Path):
    """The first of them is told what comes behind it, so what is said afterwards differs."""
    engine = seeing(artifact)
    both = told(engine, shown("a", 60, image(10, 40)))
    one = told(engine, shown("b", 60, image(10, 40, is_bidirectional=False), cache_scope="b"))
    assert abs((both[0].logprob or 0) - (one[0].logprob or 0)) > 0.01
    single = told(engine, shown("c", 60, image(10, 1)))
    assert_alike(
        single, told(engine, shown("d", 60, image(10, 1, is_bidirectional=False), cache_scope="d"))
    )


@pytest.mark.parametrize("on", ["cpu", "device"])
def test_a_long_image_is_one_run(artifact: pathlib.Path, on: str):
    """600 positions are more than any chunk of text."""
    engine = seeing(artifact) if on == "cpu" else on_device(artifact, context_length=CONTEXT)
    request = shown("a", 640, image(20, 600), max_tokens=3)
    lengths: list[int] = []
    inner = engine._images.bidirectional.run

    def watched(row, embeddings, layout) -> None:
        lengths.append(len(embeddings))
        inner(row, embeddings, layout)

    engine._images.bidirectional.run = watched  # type: ignore[method-assign]
    told(engine, request)
    assert lengths == [600]


def first_block_keys(artifact: pathlib.Path, request: GenerateRequest) -> list[np.ndarray]:
    """Keys of both blocks after one run over all of it with the masks opened, batch of one."""
    data, windows = open_masks((artifact / GRAPH_FILE).read_bytes())
    assert windows == ()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    described = read_artifact(artifact)
    assert described.onnx is not None
    values = input_table(artifact, described.onnx).lookup(np.maximum(request.prompt_ids, 0))
    for span in request.images:
        vectors = np.frombuffer(span.embeddings, np.float32).reshape(span.length, -1)
        values[span.start : span.start + span.length] = vectors
    frequencies = np.array(described.rope["global"].inverse_frequencies)
    angles = np.arange(len(values))[:, None] * frequencies
    feeds = {
        "inputs_embeds": values[None],
        "seqlens_k": np.array([len(values) - 1], np.int32),
        "total": np.array(len(values), np.int32),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
    }
    empty = np.zeros((1, 2, 0, 16), np.float32)
    feeds |= {f"past_{kind}.{n}": empty for kind in ("key", "value") for n in range(2)}
    return [np.asarray(each) for each in session.run(["present_key.0", "present_key.1"], feeds)]


@pytest.mark.parametrize("on", ["cpu", "device"])
def test_an_image_may_be_all_there_is(artifact: pathlib.Path, on: str):
    """Nothing follows it: the last position is scored by the graph that looks back only."""
    engine = seeing(artifact) if on == "cpu" else on_device(artifact, context_length=CONTEXT)
    request = shown("a", 50, image(0, 50), max_tokens=1)
    engine.add(request)
    step_until_sampled(engine, "a")
    (row,) = engine._cache._idle
    keys = np.frombuffer(engine._rows.read_block(row, 0, 50), np.float32).reshape(4, 2, 50, 16)
    expected = first_block_keys(artifact, request)
    for plane, each in zip((0, 2), expected, strict=True):
        np.testing.assert_allclose(keys[plane], each[0], atol=2e-3)


def test_kept_prefixes_are_cut_at_borders_only(artifact: pathlib.Path):
    engine = seeing(artifact)
    span = image(40, 100)
    first = told(engine, shown("a", 140, span))  # it ends with the image
    _, usage = answer(engine, shown("b", 140, span))
    assert usage.cached_tokens == 40
    assert_alike(told(engine, shown("c", 140, span)), first)
    cold = told(engine, shown("d", 170, span, cache_scope="d"))
    again = shown("e", 170, span)
    engine.add(again)
    events = run(engine)["e"]
    assert_alike([event for event in events if isinstance(event, Sampled)], cold)
    _, usage = answer(engine, shown("f", 170, span))
    assert usage.cached_tokens == 168
    _, usage = answer(engine, shown("g", 170, span, sampling=EXACT))
    assert usage.cached_tokens in (140, 168)


def test_a_copy_that_breaks_off_within_an_image_begins_it_anew(
    artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    engine = seeing(artifact)
    span = image(20, 100)
    expected = told(engine, shown("cold", 200, span, seed=1, cache_scope="cold"))
    monkeypatch.setattr(engine_module, "MOVE_BYTES", 50 * engine._rows.position_bytes)
    engine.add(shown("a", 130, span, seed=1, max_tokens=300))
    step_until_sampled(engine, "a")
    engine.add(shown("b", 200, span, seed=1))
    while not any(seat.generation.id == "b" and seat.row.length for seat in engine._prefilling):
        engine.step()
    (copying,) = engine._prefilling
    assert copying.row.length == 50
    (talking,) = engine._decoding
    engine._leave(talking, has_failed=True)
    events = run(engine)["b"]
    assert_alike([event for event in events if isinstance(event, Sampled)], expected)


def test_beside_rows_of_text(artifact: pathlib.Path):
    requests = [
        shown(f"r{n}", 60 + 9 * n, *([image(7 + n, 30)] if n % 2 else []), seed=n, max_tokens=20)
        for n in range(6)
    ]
    alone = {one.request_id: answer(seeing(artifact), one)[0] for one in requests}
    engine = seeing(artifact)
    for one in requests:
        engine.add(one)
    assert {name: ids_of(events) for name, events in run(engine).items()} == alone


def test_what_a_window_hides():
    assert (window_bias(3, 6, 2)[0, 0] < -1e4).tolist() == [
        [True, True, False, False, False, False],
        [True, True, True, False, False, False],
        [True, True, True, True, False, False],
    ]


def attention(**attributes: int) -> onnx.NodeProto:
    inputs = ["x", "", "", "past_key.0", "past_value.0", "seqlens_k", "total", "cos", "sin"]
    outputs = ["y", "present_key.0", "present_value.0"]
    node = helper.make_node("GroupQueryAttention", inputs, outputs, domain="com.microsoft")
    given = {"num_heads": 1, **attributes}
    node.attribute.extend(helper.make_attribute(name, value) for name, value in given.items())
    return node


def model_of(*nodes: onnx.NodeProto) -> bytes:
    names = ["x", "past_key.0", "past_value.0", "seqlens_k", "total", "cos", "sin", "logit_rows"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, None) for name in names]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, None)
        for name in ("logits", "present_key.0", "present_value.0")
    ]
    graph = helper.make_graph(list(nodes), "g", inputs, outputs)
    return helper.make_model(graph).SerializeToString()


def test_only_what_writes_keys_is_left():
    head = helper.make_node("Gather", ["y", "logit_rows"], ["logits"])
    data, windows = open_masks(model_of(attention(local_window_size=9, softcap=2), head))
    graph = onnx.load_model_from_string(data).graph
    (node,) = graph.node
    assert windows == (9,)
    assert node.input[10] == bias_input(9)
    assert {each.name: each.i for each in node.attribute} == {
        "num_heads": 1,
        "softcap": 2,
        "causal": 0,
    }
    assert [each.name for each in graph.output] == ["present_key.0", "present_value.0"]
    assert "logit_rows" not in [each.name for each in graph.input]
    assert graph.input[-1].name == bias_input(9)
    assert graph.input[-1].type.tensor_type.elem_type == TensorProto.FLOAT16


def test_what_cannot_be_opened_is_refused_by_name():
    branch = helper.make_graph([], "b", [], [])
    choice = helper.make_node("If", ["x"], ["logits"], then_branch=branch, else_branch=branch)
    with pytest.raises(EngineError, match="If cannot be opened"):
        open_masks(model_of(attention(), choice))


def test_models_with_states_say_so(artifact: pathlib.Path):
    rows = KeyValueRows(
        [Plane("past_key.0", "present_key.0", 1, 16)], rows=1, capacity=8,
        dtype=np.dtype("float32"), budget_bytes=1 << 30,
        states=[RowState(past="s", present="t", shape=(2,))],
    )  # fmt: skip
    runs = BidirectionalRuns(
        Load(request_id="l", backend="onnx", artifact=str(artifact)), read_artifact(artifact), rows
    )
    assert "states" in runs.obstacle
