"""Gemma 3n beside llama.cpp, beyond what all architectures are asked: codes, tables, readers without keys."""

from __future__ import annotations

import dataclasses
import pathlib

import mlx.core as mx
import pytest

from backends.mlx.adapter import attach
from backends.mlx.loading import load_engine
from backends.types import Load
from converters.artifact import MLX_ADAPTER_FILE, read_artifact
from converters.errors import Unsupported
from tests.models import random_altup
from tests.models.random_adapter import ALL_LINEARS, make_adapter, random_matrices
from tests.models.random_architectures import ARCHITECTURES
from tests.models.reference import LlamaCpp
from tests.parity.converted import adapted_file, converted_file
from tests.parity.dequantised import dequantised
from tests.parity.mlx_loop import MlxLoop
from tests.parity.onnx_loop import OnnxLoop
from tests.parity.test_architectures import CONTEXT, in_pieces, made, prompt_ids, worst_of_top

pytestmark = pytest.mark.parity

ARCHITECTURE, EXACT = "gemma3n", 5e-5
# Adapters make more of the roundings in the table that llama.cpp takes GELUs from.
ADAPTED = 1e-4
BITS = {"Q8_0": 8, "Q4_0": 4, "Q4_K": 4, "Q6_K": 8}


@pytest.mark.parametrize("types", BITS)
def test_codes_keep_what_they_mean(tmp_path: pathlib.Path, types: str):
    """Both tables stay codes, whose rows are looked up one by one."""
    path, ids = made(tmp_path, ARCHITECTURE, types), prompt_ids()
    with LlamaCpp(dequantised(path, tmp_path / "twin.gguf"), context=CONTEXT) as model:
        exact = model.logprobs(ids, 700)
    folder = converted_file(path, precise=True)
    graph = read_artifact(folder).onnx
    assert graph is not None and graph.per_block is not None
    assert graph.per_block.bits == BITS[types]
    assert worst_of_top(OnnxLoop(folder, CONTEXT).logprobs(ids), exact) < EXACT
    assert worst_of_top(in_pieces(folder, ids), exact) < EXACT
    fast = converted_file(path)
    assert worst_of_top(in_pieces(fast, ids), exact) < 0.1


def test_blocks_that_read_need_no_keys_in_the_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """llama.cpp wants them, and nothing reads them."""
    path, ids = made(tmp_path, ARCHITECTURE, "F32"), prompt_ids()
    with LlamaCpp(path, context=CONTEXT) as model:
        expected = model.logprobs(ids, 700)
    whole, unread = random_altup.gemma3n_weights, ("attn_k.", "attn_v.", "attn_k_norm.")

    def without_unread(shape: random_altup.Shape):
        for weight in whole(shape):
            _, index, *rest = weight.name.split(".")
            is_reading = index.isdigit() and int(index) >= random_altup.BLOCKS_WITH_KEYS
            if not (is_reading and f"{rest[0]}." in unread):
                yield weight

    spec = random_altup.ALTUP[ARCHITECTURE]
    bare_spec = dataclasses.replace(spec, weights=without_unread)
    monkeypatch.setitem(ARCHITECTURES, ARCHITECTURE, bare_spec)
    bare_folder = tmp_path / "bare"
    bare_folder.mkdir()
    bare = made(bare_folder, ARCHITECTURE, "F32")
    assert bare.stat().st_size < path.stat().st_size
    assert worst_of_top(in_pieces(converted_file(bare), ids), expected) < EXACT
    loop = MlxLoop(converted_file(bare, target="mlx"), context=CONTEXT)
    assert worst_of_top(loop.logprobs(ids, decoded=8), expected) < EXACT


def test_adapters_reach_every_matrix_that_is_read(tmp_path: pathlib.Path):
    """Those of keys and values that no block reads change nothing, here and there."""
    path, ids = made(tmp_path, ARCHITECTURE, "F32"), prompt_ids()
    targets = rf"{ALL_LINEARS}|laurel_(l|r)|inp_gate|proj"
    adapter = make_adapter(
        tmp_path / "lora.gguf", path, random_matrices(path, targets=targets, std=0.3)
    )
    with LlamaCpp(path, context=CONTEXT, adapter=adapter) as model:
        expected = model.logprobs(ids, 700)
    folder = converted_file(path)
    assert worst_of_top(OnnxLoop(folder, CONTEXT).logprobs(ids), expected) > 1
    adapted = OnnxLoop(folder, CONTEXT, adapter=adapted_file(adapter, path, folder))
    assert worst_of_top(adapted.logprobs(ids), expected) < ADAPTED
    folder = converted_file(path, target="mlx")
    loop = MlxLoop(folder, context=CONTEXT)
    made_adapter = adapted_file(adapter, path, folder, target="mlx")
    arrays = mx.load(str(made_adapter / MLX_ADAPTER_FILE))
    assert isinstance(arrays, dict)
    attach(loop.model, arrays)
    assert worst_of_top(loop.logprobs(ids), expected) < ADAPTED


def test_cuda_is_refused_before_a_byte_is_written(tmp_path: pathlib.Path):
    with pytest.raises(Unsupported, match="gemma3n: blocks with inputs of their own"):
        converted_file(made(tmp_path, ARCHITECTURE, "F32"), target="onnx-cuda")
    assert [each.name for each in tmp_path.iterdir()] == ["model.gguf"]


def test_vectors_are_not_made_of_logits_on_mlx(tmp_path: pathlib.Path):
    """The module's body has the head in it."""
    folder = converted_file(made(tmp_path, ARCHITECTURE, "F32"), target="mlx")
    order = Load(request_id="l", backend="mlx", artifact=str(folder), rows=1, context_length=64)
    engine = load_engine(order)
    assert not engine.capabilities.embed
    engine.close()
