"""LoRA adapters on the ONNX target beside llama.cpp with the same adapter on the same GGUF.

As for plain models: in fp32 the numbers are llama.cpp's; the precise graph gives the exact ones of
any type; the fast graph is as near to them as llama.cpp is. Every adapter here changes the answer,
so that one which is ignored cannot pass.
"""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from tests.models.random_adapter import make_adapter, random_matrices
from tests.models.random_gguf import make_gguf
from tests.models.reference import LlamaCpp
from tests.parity.converted import adapted_file, converted_file
from tests.parity.dequantised import dequantised
from tests.parity.onnx_loop import OnnxLoop
from tests.parity.test_architectures import TABLED_GELU
from tests.parity.test_converted_onnx import COUNT, Row, prompt_ids, rms, worst_of_top

pytestmark = pytest.mark.parity

VOCABULARY = 700
# What an adapter must change of the likeliest five, far beyond any rounding.
LEAST_EFFECT = 1.0


def reference(path: pathlib.Path, adapter: pathlib.Path) -> tuple[Row, list[int]]:
    with LlamaCpp(path, adapter=adapter) as model:
        ids = prompt_ids(VOCABULARY)
        return model.logprobs(ids, VOCABULARY), model.greedy(ids, COUNT)


class Adapted:
    """One base with one adapter, converted."""

    def __init__(self, path: pathlib.Path, adapter: pathlib.Path, *, precise: bool = False):
        self.folder = converted_file(path, precise=precise)
        self.adapter = adapted_file(adapter, path, self.folder, precise=precise)

    def loop(self) -> OnnxLoop:
        return OnnxLoop(self.folder, adapter=self.adapter)

    def logprobs(self) -> Row:
        return self.loop().logprobs(prompt_ids(VOCABULARY))

    def effect(self) -> float:
        plain = OnnxLoop(self.folder).logprobs(prompt_ids(VOCABULARY))
        return worst_of_top(plain, self.logprobs())


@pytest.mark.parametrize(
    ("architecture", "targets"),
    [
        ("llama", r"attn_(q|k|v|output)|ffn_(gate|up|down)|output"),
        ("llama", r"attn_(q|v)"),
        ("llama", r"attn_k"),
        ("qwen2", r"attn_(q|k|v|output)|ffn_(gate|up|down)"),
        ("qwen3", r"attn_(q|k|v|output)|ffn_(gate|up|down)"),
        ("phi4", r"attn_qkv|ffn_up|ffn_down"),
        ("gemma3", r"attn_(q|k|v|output)|ffn_(gate|up|down)"),
        ("command-r", r"attn_(q|k|v|output)|ffn_(gate|up|down)"),
        ("granitehybrid", r"attn_(q|k|v|output)|ffn_(gate|up|down)|ssm_(in|out)"),
    ],
)
def test_in_floats_the_numbers_are_llama_cpps(
    tmp_path: pathlib.Path, architecture: str, targets: str
):
    path = make_gguf(tmp_path / "model.gguf", architecture=architecture, types="F32")
    matrices = random_matrices(path, targets=targets, std=0.2)
    adapter = make_adapter(tmp_path / "lora.gguf", path, matrices)
    expected, chosen = reference(path, adapter)
    adapted = Adapted(path, adapter)
    tolerance = TABLED_GELU if architecture == "gemma3" else 5e-5
    assert worst_of_top(adapted.logprobs(), expected) < tolerance
    assert adapted.loop().greedy(prompt_ids(VOCABULARY), COUNT) == chosen
    assert adapted.effect() > 50 * tolerance


@pytest.mark.parametrize("types", ["Q4_K", "Q8_0", "Q6_K"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_over_quantised_weights(tmp_path: pathlib.Path, architecture: str, types: str):
    path = make_gguf(tmp_path / "model.gguf", architecture=architecture, types=types)
    adapter = make_adapter(tmp_path / "lora.gguf", path)
    twin = dequantised(path, tmp_path / "twin.gguf")
    exact, chosen = reference(twin, adapter)
    precise = Adapted(path, adapter, precise=True)
    assert worst_of_top(precise.logprobs(), exact) < 5e-5
    assert precise.loop().greedy(prompt_ids(VOCABULARY), COUNT) == chosen
    assert precise.effect() > LEAST_EFFECT
    theirs, _ = reference(path, adapter)
    fast = Adapted(path, adapter)
    assert rms(fast.logprobs(), exact) < 1.4 * rms(theirs, exact)


@pytest.mark.parametrize("types", ["F16", "BF16", "Q8_0"])
def test_adapters_of_other_types(tmp_path: pathlib.Path, types: str):
    path = make_gguf(tmp_path / "model.gguf", types="F32")
    adapter = make_adapter(tmp_path / "lora.gguf", path, types=types)
    expected, _ = reference(path, adapter)
    adapted = Adapted(path, adapter)
    # llama.cpp rounds activations to the adapter's own type before it multiplies.
    assert worst_of_top(adapted.logprobs(), expected) < 0.1
    assert adapted.effect() > LEAST_EFFECT


@pytest.mark.parametrize("alpha", [0.0, 4.0])
def test_alpha_over_rank_is_the_scale(tmp_path: pathlib.Path, alpha: float):
    path = make_gguf(tmp_path / "model.gguf", types="F32")
    matrices = random_matrices(path, rank=5, std=0.3)
    adapter = make_adapter(tmp_path / "lora.gguf", path, matrices, alpha=alpha)
    expected, _ = reference(path, adapter)
    assert worst_of_top(Adapted(path, adapter).logprobs(), expected) < 5e-5


def test_an_encoder_takes_an_adapter(tmp_path: pathlib.Path):
    path = make_gguf(
        tmp_path / "model.gguf",
        architecture="qwen3",
        types="F32",
        metadata={"qwen3.pooling_type": 3},
    )
    adapter = make_adapter(tmp_path / "lora.gguf", path)
    ids = prompt_ids(VOCABULARY)
    with LlamaCpp(path, is_encoder=True, adapter=adapter) as model:
        expected = model.embed(ids)
    with LlamaCpp(path, is_encoder=True) as model:
        plain = model.embed(ids)
    found = _vector(Adapted(path, adapter), ids)
    assert np.abs(found - expected).max() < 1e-4 < np.abs(plain - expected).max()


def _vector(adapted: Adapted, ids: list[int]) -> Row:
    from backends.onnx import backend
    from backends.types import Load

    load = Load(
        request_id="l",
        backend="onnx",
        artifact=str(adapted.folder),
        adapters=(str(adapted.adapter),),
        threads=1,
    )
    engine = backend.load(load)
    assert engine.capabilities.adapters
    (vector,) = engine.embed([tuple(ids)])
    return np.frombuffer(vector, "<f4").astype(np.float64)
