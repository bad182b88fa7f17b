"""An ONNX graph in a GGUF: converted, run and pooled by the engine; strangers' graphs refused."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from backends.onnx import backend
from backends.types import Load
from converters.artifact import read_artifact
from converters.convert import Request, convert
from converters.convert_graph import check_graph
from converters.errors import ConversionError, Unsupported
from converters.foreign_graph import ARCHITECTURE, GRAPH_TENSOR
from converters.gguf import read_header
from converters.gguf_types import ValueType
from converters.gguf_writer import NewTensor, TypedValue, plan_file, write_file
from converters.plan import assess
from tests.models.vocabularies import build_vocabulary
from tests.parity.converted import SilentProgress

WIDTH, ROWS = 8, 700
TABLE = np.random.default_rng(3).standard_normal((ROWS, WIDTH)).astype(np.float32)
# What the graph adds where the mask is 0: shows whether padding leaks.
PADDING = np.float32(50)


def graph() -> onnx.ModelProto:
    """hidden = table[ids] + 50 · (1 - mask)."""
    batch = ["b", "s"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, batch)
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*batch, WIDTH])
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Sub", ["one", "attention_mask"], ["outside"]),
        helper.make_node("Cast", ["outside"], ["outside32"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["outside32", "fifty"], ["leak"]),
        helper.make_node("Unsqueeze", ["leak", "last"], ["column"]),
        helper.make_node("Add", ["rows", "column"], ["last_hidden_state"]),
    ]
    constants = {
        "table": TABLE, "one": np.array(1), "fifty": np.array(PADDING), "last": np.array([2]),
    }  # fmt: skip
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "encoder", inputs, [output], held)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def write(path: pathlib.Path, data: bytes, pooling: int = 1) -> pathlib.Path:
    words = build_vocabulary("llama")
    text, number = ValueType.STRING, ValueType.UINT32
    keys = {
        "general.architecture": TypedValue(text, ARCHITECTURE),
        "general.name": TypedValue(text, "stranger"),
        f"{ARCHITECTURE}.context_length": TypedValue(number, 32),
        f"{ARCHITECTURE}.embedding_length": TypedValue(number, WIDTH),
        f"{ARCHITECTURE}.pooling_type": TypedValue(number, pooling),
        "tokenizer.ggml.model": TypedValue(text, words.kind),
        "tokenizer.ggml.tokens": TypedValue(text, words.tokens),
        "tokenizer.ggml.token_type": TypedValue(ValueType.INT32, np.array(words.types)),
        "tokenizer.ggml.scores": TypedValue(ValueType.FLOAT32, np.array(words.scores)),
    }
    planned = plan_file(keys, [NewTensor(GRAPH_TENSOR, (len(data),), "I8")])
    with path.open("wb") as file:
        write_file(file, planned, lambda _: [data])
    return path


def converted(path: pathlib.Path, target: str = "onnx-cpu") -> pathlib.Path:
    final = path.with_name("artifact")
    with path.open("rb") as file:
        convert(file, Request(source="ab" * 32, target=target, final=final), SilentProgress())
    return final


@pytest.mark.parametrize(("number", "pooling"), [(1, "mean"), (2, "cls"), (3, "last")])
def test_vectors_are_pooled_without_padding(
    tmp_path: pathlib.Path, number: int, pooling: str
) -> None:
    path = write(tmp_path / "m.gguf", graph().SerializeToString(), number)
    folder = converted(path)
    assert read_artifact(folder).pooling == pooling
    engine = backend.load(
        Load(request_id="l", backend="onnx", artifact=str(folder), rows=1, context_length=32)
    )
    texts = [(5, 6, 7, 8), (9,), (10, 11)]
    pooled: dict[str, Callable[[tuple[int, ...]], np.ndarray]] = {
        "mean": lambda ids: TABLE[list(ids)].mean(axis=0),
        "cls": lambda ids: TABLE[ids[0]],
        "last": lambda ids: TABLE[ids[-1]],
    }
    for ids, found in zip(texts, engine.embed(texts), strict=True):
        expected = pooled[pooling](ids)
        np.testing.assert_allclose(np.frombuffer(found, "<f4"), expected, rtol=1e-6)
    engine.close()


def test_the_other_runtime_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "m.gguf", graph().SerializeToString())
    found = assess(read_header(path))
    assert set(found.estimates) == {"onnx"}
    assert "ONNX Runtime only" in found.refusals["mlx"]
    with pytest.raises(Unsupported, match="ONNX Runtime only"):
        converted(path, "mlx")


def outside(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")


def outside_of_a_branch(model: onnx.ModelProto) -> None:
    inner = onnx.GraphProto(name="inner")
    inner.initializer.add().CopyFrom(model.graph.initializer[0])
    inner.initializer[0].external_data.add(key="location", value="/etc/passwd")
    model.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=inner))


def outside_of_a_constant(model: onnx.ModelProto) -> None:
    tensor = onnx.TensorProto(name="t", data_type=1, data_location=TensorProto.EXTERNAL)
    model.graph.node.append(helper.make_node("Constant", [], ["d"], value=tensor))


def foreign_domain(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="evil.ops", version=1)


def foreign_node(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Run", [], ["d"], domain="evil.ops"))


def other_input(model: onnx.ModelProto) -> None:
    model.graph.input[1].name = "pixels"


def floats(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def other_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "logits"


def other_width(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = WIDTH + 1


def functions(model: onnx.ModelProto) -> None:
    model.functions.add(name="f", domain="")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (outside, "lies in another file"),
        (outside_of_a_branch, "lies in another file"),
        (outside_of_a_constant, "lies in another file"),
        (foreign_domain, r"evil\.ops"),
        (foreign_node, r"evil\.ops"),
        (other_input, "takes input_ids, pixels"),
        (floats, "input_ids is not of 64-bit integers"),
        (other_output, "does not give last_hidden_state"),
        (other_width, "does not give last_hidden_state"),
        (functions, "functions of its own"),
    ],
)
def test_strangers_are_refused(
    tmp_path: pathlib.Path, change: Callable[[onnx.ModelProto], None], text: str
) -> None:
    model = graph()
    change(model)
    path = write(tmp_path / "m.gguf", model.SerializeToString())
    with pytest.raises(Unsupported, match=text):
        converted(path)
    assert [each.name for each in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("data", [b"", b"\xff" * 64, b"GGUF"])
def test_bytes_that_are_no_graph(data: bytes) -> None:
    with pytest.raises(ConversionError):
        check_graph(data, WIDTH)
