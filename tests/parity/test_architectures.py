"""Every architecture beside llama.cpp: plain floats, so that what differs is not the rounding.

A prompt of 48 ids whole, in chunks whose first ones want no logits, and id by id; windows, scaled
rotations and YaRN's boundary all lie within it. llama.cpp's GELU is a table of half floats, which is
what its architectures differ by.
"""

from __future__ import annotations

import pathlib

import numpy as np
import numpy.typing as npt
import pytest

from tests.models.random_architectures import BLOCKS as LEAST_BLOCKS
from tests.models.random_architectures import DECODERS, MIXTURES, Value
from tests.models.random_gguf import make_gguf
from tests.models.reference import LlamaCpp
from tests.parity.converted import converted_file
from tests.parity.dequantised import dequantised
from tests.parity.onnx_loop import OnnxLoop

pytestmark = pytest.mark.parity

CONTEXT = 512
EXACT, TABLED_GELU, DEEP = 3e-5, 2e-3, 3e-4
TANH_GELU = (
    "falcon", "falcon-40b", "gemma", "gemma2", "gemma3", "gemma3-full", "gptneox", "gptneox-serial",
    "phi2", "phi2-fused", "starcoder2",
)  # fmt: skip
TOLERANCES = {
    **dict.fromkeys(TANH_GELU, TABLED_GELU),
    "deepseek2-lite": DEEP,  # 26 blocks
}
# The counts by which llama.cpp knows the lite model and Gemma 3n.
BLOCKS = LEAST_BLOCKS | {"deepseek2-lite": 26, "gemma3n": 25}
Row = npt.NDArray[np.float64]


def made(
    folder: pathlib.Path, architecture: str, types: str, metadata: dict[str, Value] | None = None
) -> pathlib.Path:
    blocks = BLOCKS.get(architecture, 2)
    return make_gguf(
        folder / "model.gguf",
        architecture=architecture,
        types=types,
        blocks=blocks,
        feed_forward=128 if blocks > 5 else 512,
        metadata=metadata,
    )


def prompt_ids() -> list[int]:
    return [int(one) for one in np.random.default_rng(5).integers(300, 700, 48)]


def worst_of_top(found: Row, expected: Row) -> float:
    top = np.argsort(-expected)[:5]
    return float(np.abs(found - expected)[top].max())


def in_pieces(folder: pathlib.Path, ids: list[int]) -> Row:
    """Two chunks without logits, then id by id."""
    loop = OnnxLoop(folder, CONTEXT)
    loop.run(ids[:17], [])
    loop.run(ids[17:40], [])
    for one in ids[40:-1]:
        loop.run([one], [])
    return loop.logprobs(ids[-1:])


@pytest.mark.parametrize("architecture", sorted({*DECODERS, *MIXTURES}))
def test_logprobs_are_those_of_llama_cpp(tmp_path: pathlib.Path, architecture: str):
    path, ids = made(tmp_path, architecture, "F32"), prompt_ids()
    folder = converted_file(path)
    with LlamaCpp(path, context=CONTEXT) as model:
        expected, chosen = model.logprobs(ids, 700), model.greedy(ids, 6)
    tolerance = TOLERANCES.get(architecture, EXACT)
    assert worst_of_top(OnnxLoop(folder, CONTEXT).logprobs(ids), expected) < tolerance
    assert worst_of_top(in_pieces(folder, ids), expected) < tolerance
    assert OnnxLoop(folder, CONTEXT).greedy(ids, len(chosen)) == chosen


@pytest.mark.parametrize("blocks", [2, 4])
def test_a_last_block_may_be_a_mixer_alone(tmp_path: pathlib.Path, blocks: int):
    """One that attends, and one with a state: what is narrowed to the wanted ids comes before its end."""
    path = make_gguf(tmp_path / "m.gguf", architecture="nemotron_h", types="F32", blocks=blocks)
    folder, ids = converted_file(path), prompt_ids()
    with LlamaCpp(path, context=CONTEXT) as model:
        expected = model.logprobs(ids, 700)
    assert worst_of_top(OnnxLoop(folder, CONTEXT).logprobs(ids), expected) < EXACT
    assert worst_of_top(in_pieces(folder, ids), expected) < EXACT


def rms(found: Row, expected: Row) -> float:
    return float(np.sqrt(np.square(found - expected).mean()))


@pytest.mark.parametrize("types", ["Q8_0", "Q4_0", "Q4_K", "Q4_K_M"])
@pytest.mark.parametrize(
    "architecture", ["bailingmoe2", "deepseek2", "gpt-oss", "nemotron_h_moe", "qwen2moe"]
)
def test_coded_experts_are_about_as_near_to_the_exact_numbers(
    tmp_path: pathlib.Path, architecture: str, types: str
):
    path, ids = made(tmp_path, architecture, types), prompt_ids()
    found = OnnxLoop(converted_file(path), CONTEXT).logprobs(ids)
    with LlamaCpp(path, context=CONTEXT) as model:
        theirs = model.logprobs(ids, 700)
    with LlamaCpp(dequantised(path, tmp_path / "twin.gguf"), context=CONTEXT) as model:
        exact = model.logprobs(ids, 700)
    assert rms(found, exact) < max(2.5 * rms(theirs, exact), 0.1)


@pytest.mark.parametrize(
    "architecture", ["mixtral", "gpt-oss", "deepseek2", "bailingmoe2", "nemotron_h_moe"]
)
def test_precise_experts_give_the_exact_numbers(tmp_path: pathlib.Path, architecture: str):
    path, ids = made(tmp_path, architecture, "Q4_K"), prompt_ids()
    found = OnnxLoop(converted_file(path, precise=True), CONTEXT).logprobs(ids)
    with LlamaCpp(dequantised(path, tmp_path / "twin.gguf"), context=CONTEXT) as model:
        assert worst_of_top(found, model.logprobs(ids, 700)) < 1e-4
