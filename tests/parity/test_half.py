"""The fp16 graph that is made for GPUs, on the CPU provider, beside the exact graph and llama.cpp.

It computes from the same codes, so it may differ from the exact numbers by fp16's rounding only: a
few thousandths of a logit, where llama.cpp itself is some hundredths away.
"""

from __future__ import annotations

import pathlib

import numpy as np
import onnx
import pytest

from converters.artifact import GRAPH_FILE, read_artifact
from converters.errors import Unsupported
from tests.models.random_gguf import make_gguf
from tests.models.reference import LlamaCpp
from tests.parity.converted import converted_file
from tests.parity.onnx_loop import OnnxLoop

pytestmark = pytest.mark.parity

COUNT = 8
# All that a product can be: codes of 4 and 8 bits, in blocks of 16 and 32, with and without mins.
KINDS = [
    ("llama", "Q4_0"),
    ("llama", "Q4_K"),
    ("llama", "F16"),
    ("llama", "BF16"),
    ("qwen2", "Q6_K"),
    ("exaone", "Q2_K"),
    ("command-r", "Q3_K"),
    ("llama3", "Q4_K"),
    ("qwen3", "Q8_0"),
    ("gemma2", "Q4_K"),
    ("gemma3", "Q8_0"),
    ("phi4-long", "Q8_0"),
    ("mistral3", "Q8_0"),
    ("granite", "Q5_K"),
    ("olmo2", "Q4_K"),
    ("glm4", "Q8_0"),
    ("starcoder2", "Q8_0"),
    ("qwen3moe", "F16"),
    ("deepseek2", "F16"),
]


def prompt_ids(vocabulary: int) -> list[int]:
    return [int(one) for one in np.random.default_rng(5).integers(300, vocabulary, 48)]


def worst_of_top(found: np.ndarray, expected: np.ndarray, count: int = 5) -> float:
    top = np.argsort(-expected)[:count]
    return float(np.abs(found - expected)[top].max())


@pytest.mark.parametrize(("architecture", "types"), KINDS)
def test_it_is_as_near_as_fp16_can_be(tmp_path: pathlib.Path, architecture: str, types: str):
    path = make_gguf(tmp_path / "model.gguf", architecture=architecture, types=types)
    half = OnnxLoop(converted_file(path, target="onnx-cuda"))
    exact = OnnxLoop(converted_file(path, precise=True))
    vocabulary = half.artifact.vocabulary
    ids = prompt_ids(vocabulary)
    found, expected = half.logprobs(ids), exact.logprobs(ids)
    assert worst_of_top(found, expected) < 0.03
    with LlamaCpp(path) as model:
        assert worst_of_top(found, model.logprobs(ids, vocabulary)) < 0.3


def test_it_says_the_same_words(tmp_path: pathlib.Path):
    path = make_gguf(tmp_path / "model.gguf", types="Q4_K_M", blocks=4)
    folder = converted_file(path, target="onnx-cuda")
    ids = prompt_ids(OnnxLoop(folder).artifact.vocabulary)
    with LlamaCpp(path) as model:
        assert OnnxLoop(folder).greedy(ids, COUNT) == model.greedy(ids, COUNT)


def test_what_was_rounded_is_said(tmp_path: pathlib.Path):
    """Q4_0's scales are fp16 in the file; K types' are products of two numbers."""
    exact = read_artifact(
        converted_file(make_gguf(tmp_path / "a.gguf", types="Q4_0"), target="onnx-cuda")
    )
    codes = [one for one in exact.tensors if one.source_type == "Q4_0"]
    assert codes and {one.exactness for one in codes} == {"exact"}
    rounded = read_artifact(
        converted_file(make_gguf(tmp_path / "b.gguf", types="Q4_K"), target="onnx-cuda")
    )
    for one in rounded.tensors:
        if one.source_type == "Q4_K" and one.name != "token_embd.weight":
            assert one.exactness == "scale-rounded"
            assert 0 < one.rms_error < one.max_error < 1e-2


def test_keys_values_and_tables_are_half_everything_else_is_not(tmp_path: pathlib.Path):
    folder = converted_file(make_gguf(tmp_path / "model.gguf"), target="onnx-cuda")
    artifact = read_artifact(folder)
    assert artifact.onnx and artifact.onnx.key_value_dtype == "float16"
    assert artifact.resident_bytes.keys() == {"cuda"}
    graph = onnx.load(str(folder / GRAPH_FILE), load_external_data=False).graph
    types = {
        value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)
    }
    half = {name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT16}
    assert {"cos", "sin", "past_key.0", "present_value.1"} <= half
    assert {"inputs_embeds", "logits", "topk_values", "lse", "hidden"}.isdisjoint(half)
    products = [node for node in graph.node if node.op_type == "MatMulNBits"]
    # The fastest kernel takes neither zero points nor a bias.
    assert products and all(len(node.input) == 3 for node in products)


@pytest.mark.parametrize(
    ("architecture", "words"),
    [("bert", "embedding models run on the CPU"), ("lfm2", "blocks with a state")],
)
def test_what_is_not_for_a_gpu_is_refused_by_name(
    tmp_path: pathlib.Path, architecture: str, words: str
):
    path = make_gguf(tmp_path / "model.gguf", architecture=architecture)
    with pytest.raises(Unsupported, match=words):
        converted_file(path, target="onnx-cuda")


def test_a_precise_artifact_is_for_the_cpu(tmp_path: pathlib.Path):
    with pytest.raises(Unsupported, match="precise"):
        converted_file(make_gguf(tmp_path / "model.gguf"), target="onnx-cuda", precise=True)
