"""The fp16 graph that is made for GPUs, on the CPU provider, beside the exact graph and llama.cpp.

It computes from the same codes, so it may differ from the exact numbers by fp16's rounding only: a
few thousandths of a logit, where llama.cpp itself is some hundredths away.
"""

from __future__ import annotations

import pathlib

import numpy as np
import onnx
import pytest

from converters.artifact import GRAPH_FILE, read_adapter, read_artifact
from converters.errors import Unsupported
from tests.models.random_adapter import make_adapter
from tests.models.random_architectures import ENCODERS
from tests.models.random_gguf import make_gguf
from tests.models.reference import LlamaCpp
from tests.parity.converted import adapted_file, converted_file
from tests.parity.onnx_loop import OnnxLoop
from tests.parity.test_encoders import EncoderLoop, cosine, texts_of

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
    ("bailingmoe2", "F16"),
    ("glm4moe", "F16"),
    ("stablelm", "Q4_K"),
    ("phi2", "Q8_0"),
    ("falcon-40b", "Q4_0"),
    ("apertus", "Q8_0"),
    ("hunyuan-dense", "Q8_0"),
    ("lfm2", "Q4_K"),
    ("qwen35", "Q8_0"),
    ("granitehybrid", "Q4_K"),
    ("granitehybrid-mixture", "F16"),
    ("nemotron_h", "Q4_K"),
    ("nemotron_h_moe", "F16"),
    ("qwen3next", "F16"),
    ("qwen3next-early", "Q4_K"),
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


def nodes_of(folder: pathlib.Path) -> list[onnx.NodeProto]:
    return list(onnx.load(str(folder / GRAPH_FILE), load_external_data=False).graph.node)


def test_norms_of_queries_and_keys_are_named_as_the_fusion_for_cuda_wants(tmp_path: pathlib.Path):
    """The optimizer of ONNX Runtime 1.31 takes them into the attention node, on CUDA only."""
    path = make_gguf(tmp_path / "model.gguf", architecture="qwen3")
    half = [node.op_type for node in nodes_of(converted_file(path, target="onnx-cuda"))]
    whole = [node.op_type for node in nodes_of(converted_file(path))]
    attending = half.count("GroupQueryAttention")
    assert half.count("SimplifiedLayerNormalization") == 2 * attending
    assert "SimplifiedLayerNormalization" not in whole
    assert len(half) > len(whole)  # casts, and nothing less


@pytest.mark.parametrize("architecture", ["lfm2", "qwen35", "granitehybrid"])
def test_states_and_what_they_go_through_stay_fp32(tmp_path: pathlib.Path, architecture: str):
    path = make_gguf(tmp_path / "model.gguf", architecture=architecture)
    folder = converted_file(path, target="onnx-cuda")
    artifact = read_artifact(folder)
    assert artifact.onnx and artifact.onnx.states
    states = {name for state in artifact.onnx.states for name in (state.past, state.present)}
    graph = onnx.load(str(folder / GRAPH_FILE), load_external_data=False).graph
    values = {value.name: value for value in (*graph.input, *graph.output)}
    kinds = {values[name].type.tensor_type.elem_type for name in states}
    assert kinds == {onnx.TensorProto.FLOAT}
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    recurrent = ("CausalConvWithState", "LinearAttention")
    read = [name for node in graph.node if node.op_type in recurrent for name in node.input]
    kernels = [weights[name] for name in read if name in weights]
    assert kernels and set(kernels) == {onnx.TensorProto.FLOAT}


def test_what_is_made_of_a_shape_goes_into_ranges_only(tmp_path: pathlib.Path):
    """Anything else would be copied to the device, and steps with copies cannot be captured."""
    path = make_gguf(tmp_path / "model.gguf", architecture="mistral3")
    nodes = nodes_of(converted_file(path, target="onnx-cuda"))
    made = {name for node in nodes if node.op_type == "Shape" for name in node.output}
    readers = set()
    for node in nodes:
        if made & set(node.input):
            readers.add(node.op_type)
            made |= set(node.output) if node.op_type != "Range" else set()
    assert readers == {"Squeeze", "Neg", "Range"}


@pytest.mark.parametrize("types", ["Q6_K", "Q4_K"])
def test_experts_are_as_near_as_on_the_cpu(tmp_path: pathlib.Path, types: str):
    """Two blocks of 16 are one there; the CPU's operator rounds activations to 8 bits besides."""
    path = make_gguf(tmp_path / "model.gguf", architecture="mixtral", types=types)
    half, fast = OnnxLoop(converted_file(path, target="onnx-cuda")), OnnxLoop(converted_file(path))
    exact = OnnxLoop(converted_file(path, precise=True))
    ids = prompt_ids(half.artifact.vocabulary)
    expected = exact.logprobs(ids)
    apart = [np.sqrt(np.square(one.logprobs(ids) - expected).mean()) for one in (half, fast)]
    assert apart[0] < 1.3 * apart[1] < 0.3


@pytest.mark.parametrize("architecture", ["llama", "qwen35", "gemma-embedding"])
def test_nothing_in_it_needs_cudnn(tmp_path: pathlib.Path, architecture: str):
    """These reductions do; the runtime loads that library for them alone, if it finds it."""
    path = make_gguf(tmp_path / "model.gguf", architecture=architecture)
    found = {node.op_type for node in nodes_of(converted_file(path, target="onnx-cuda"))}
    assert not {"ReduceLogSumExp", "ReduceL2", "ReduceMax", "Conv"} & found


# ---- models that give vectors ----


@pytest.mark.parametrize("architecture", sorted(ENCODERS))
def test_its_vectors_point_where_the_exact_ones_do(tmp_path: pathlib.Path, architecture: str):
    kv_heads = 4 if "bert" in architecture else 2
    path = make_gguf(
        tmp_path / "model.gguf", architecture=architecture, types="Q8_0", kv_heads=kv_heads
    )
    half = EncoderLoop(converted_file(path, target="onnx-cuda"))
    assert half.artifact.resident_bytes.keys() == {"cuda"}
    exact = EncoderLoop(converted_file(path, precise=True))
    texts = texts_of(half.artifact.vocabulary)
    found, expected = half.run(texts), exact.run(texts)
    for one, other in zip(found.astype(np.float64), expected.astype(np.float64), strict=True):
        assert np.abs(one - other).max() < max(0.02 * np.abs(other).max(), 5e-3)
        assert cosine(one, other) > 1 - 1e-4


def test_attention_without_a_cache_gives_its_keys_and_values_all_the_same(tmp_path: pathlib.Path):
    """CUDA's kernel refuses to leave them out."""
    path = make_gguf(tmp_path / "model.gguf", architecture="bert", kv_heads=4)
    nodes = nodes_of(converted_file(path, target="onnx-cuda"))
    attending = [node for node in nodes if node.op_type == "GroupQueryAttention"]
    assert attending and all(len(node.output) == 3 for node in attending)


def test_a_batch_gives_what_each_text_gives_alone(tmp_path: pathlib.Path):
    """Padding, windows and distances are masked in fp16 too."""
    for architecture in ("gemma-embedding", "jina-bert-v2"):
        path = make_gguf(tmp_path / f"{architecture}.gguf", architecture=architecture, kv_heads=4)
        loop = EncoderLoop(converted_file(path, target="onnx-cuda"))
        texts = texts_of(loop.artifact.vocabulary)
        together = loop.run(texts)
        for ids, vector in zip(texts, together, strict=True):
            alone = loop.run([ids])[0]
            assert cosine(vector.astype(np.float64), alone.astype(np.float64)) > 1 - 1e-5


# ---- adapters ----


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "lfm2"])
def test_an_adapter_in_fp16_gives_what_it_gives_in_fp32(tmp_path: pathlib.Path, architecture: str):
    path = make_gguf(tmp_path / "model.gguf", architecture=architecture, types="Q8_0")
    adapter = make_adapter(tmp_path / "lora.gguf", path)
    found: dict[str, np.ndarray] = {}
    for target in ("onnx-cuda", "onnx-cpu"):
        folder = converted_file(path, target=target, precise=target == "onnx-cpu")
        adapted = adapted_file(adapter, path, folder, target=target, precise=target == "onnx-cpu")
        ids = prompt_ids(OnnxLoop(folder).artifact.vocabulary)
        found[target] = OnnxLoop(folder, adapter=adapted).logprobs(ids)
        found[f"{target} alone"] = OnnxLoop(folder).logprobs(ids)
        made = read_adapter(adapted, folder)
        assert all(one.is_half is (target == "onnx-cuda") for one in made.arrays.values())
        assert (made.max_error > 0) is (target == "onnx-cuda")
        assert made.max_error < 1e-2
    assert worst_of_top(found["onnx-cuda"], found["onnx-cpu"]) < 0.03
    assert worst_of_top(found["onnx-cuda alone"], found["onnx-cuda"]) > 0.5


def test_a_precise_artifact_is_for_the_cpu(tmp_path: pathlib.Path):
    with pytest.raises(Unsupported, match="precise"):
        converted_file(make_gguf(tmp_path / "model.gguf"), target="onnx-cuda", precise=True)
