"""Every random model is one that llama.cpp loads, runs and finds spread like a real model's."""

import math
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize

from tests.models.block_quantiser import plan_block_type, quantise
from tests.models.random_architectures import DECODERS, ENCODERS, MIXTURES
from tests.models.random_gguf import SIZES, make_gguf
from tests.models.reference import LlamaCpp

TYPES = (
    "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K "
    "IQ4_NL IQ4_XS IQ3_S IQ3_XXS MXFP4 Q3_K_M Q4_K_S Q4_K_M Q5_K_M"
)
TOKENIZERS = [("llama", "default"), ("gpt2", "llama-bpe"), ("gpt2", "qwen2"), ("gpt2", "gpt-2")]
PROMPT = [5, 300, 301, 302, 303]


def assert_behaves(path: Path, distinct: int = 4) -> None:
    """Generates without an end in the way, with a peaked but not degenerate distribution."""
    with LlamaCpp(path) as model:
        row = model.logprobs(PROMPT, 700)
        assert np.isfinite(row).all()
        assert math.isclose(np.exp(row).sum(), 1.0, rel_tol=1e-4)
        assert 1.5 < row.std() < 4.0
        assert model.greedy(PROMPT, 1) == [int(row.argmax())]
        assert len(set(model.greedy(PROMPT, 12))) >= distinct


# llama.cpp knows it by 26 blocks; the parity tests make it so.
@pytest.mark.parametrize("architecture", sorted({*DECODERS, *MIXTURES} - {"deepseek2-lite"}))
def test_llama_cpp_runs_every_architecture(tmp_path: Path, architecture: str) -> None:
    path = make_gguf(tmp_path / "a.gguf", architecture=architecture, types="F32")
    assert_behaves(path, distinct=2 if architecture in MIXTURES else 4)


@pytest.mark.parametrize("architecture", ENCODERS)
def test_llama_cpp_runs_every_encoder(tmp_path: Path, architecture: str) -> None:
    """Different texts get different vectors."""
    kv_heads = 4 if "bert" in architecture else 2
    path = make_gguf(tmp_path / "a.gguf", architecture=architecture, types="F32", kv_heads=kv_heads)
    with LlamaCpp(path, is_encoder=True) as model:
        first, second = model.embed(PROMPT), model.embed([*PROMPT, 400])
    # Ranking gives a score; what llama.cpp leaves behind it is not written.
    length = 1 if "rank" in architecture else len(first)
    assert np.isfinite(first[:length]).all()
    assert np.abs(first - second)[:length].max() > 1e-3


@pytest.mark.parametrize("types", TYPES.split())
def test_llama_cpp_runs_every_block_type(tmp_path: Path, types: str) -> None:
    assert_behaves(make_gguf(tmp_path / "a.gguf", types=types))


@pytest.mark.parametrize(("kind", "pre"), TOKENIZERS)
def test_text_survives_every_tokenizer(tmp_path: Path, kind: str, pre: str) -> None:
    path = make_gguf(tmp_path / "a.gguf", types="Q4_0", tokenizer=kind, pre=pre)
    text = "They'd sailed 1234 miles, naïve 東京 🙂\n\n  done"
    with LlamaCpp(path) as model:
        ids = model.tokenize(text)
        assert len(ids) < len(text.encode())  # merges happen
        assert model.detokenize(ids).removeprefix(" ") == text
        prompt = model.render([{"role": "user", "content": "Hi"}])
        header = model.tokenize(prompt)[:2]
    assert "Hi" in prompt
    control = GGUFReader(path).fields["tokenizer.ggml.token_type"].contents()
    assert 3 in {control[token] for token in header}


def test_same_arguments_give_same_bytes(tmp_path: Path) -> None:
    first = make_gguf(tmp_path / "a.gguf", seed=3).read_bytes()
    assert make_gguf(tmp_path / "b.gguf", seed=3).read_bytes() == first
    assert make_gguf(tmp_path / "c.gguf", seed=4).read_bytes() != first


def test_the_smallest_size_is_about_100_kilobytes(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "a.gguf", types="Q4_K", **SIZES["0.1M"])
    assert path.stat().st_size < 130_000
    with LlamaCpp(path) as model:
        assert len(model.greedy([5, 6, 7], 5)) == 5


def test_tensors_beyond_the_pool_have_no_equal_rows(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "a.gguf", blocks=1, vocabulary=6000, types="Q4_K")
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    table = tensors["token_embd.weight"]
    values = dequantize(np.asarray(table.data), table.tensor_type)
    assert values.shape == (6000, 256)
    assert math.isclose(values.std(), 1.0, rel_tol=0.05)
    assert len(np.unique(values, axis=0)) == 6000


def test_extra_metadata_and_template(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "a.gguf", metadata={"llama.test": [1, 2]}, chat_template="")
    fields = GGUFReader(path).fields
    assert fields["llama.test"].contents() == [1, 2]
    assert "tokenizer.chat_template" not in fields


def test_a_mix_gives_some_tensors_more_bits() -> None:
    chosen = [
        plan_block_type(f"blk.{index}.ffn_down.weight", 512, "Q4_K_M", 8) for index in range(8)
    ]
    assert chosen == ["Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q6_K"]
    assert plan_block_type("output.weight", 512, "Q4_K_M", 8) == "Q6_K"
    assert plan_block_type("blk.0.attn_v.weight", 96, "Q4_K_M", 8) == "Q8_0"
    assert plan_block_type("blk.0.attn_q.weight", 96, "Q4_K_M", 8) == "Q5_0"


def test_unfilled_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="100 columns"):
        quantise(np.zeros((2, 100), np.float32), "Q4_0")
