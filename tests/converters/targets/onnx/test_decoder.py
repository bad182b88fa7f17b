"""The graph's contract, run on real sessions: wanted rows, ragged rows, chunks, shared caches."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from converters.artifact import GRAPH_FILE
from tests.parity.converted import converted
from tests.parity.onnx_loop import OnnxLoop, looked_up

CONTEXT = 64
Inputs = dict[str, npt.NDArray[Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return converted(tmp_path_factory.mktemp("decoder"), types="Q4_K_M")


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"])
def test_loads_without_a_warning(
    folder: pathlib.Path, capfd: pytest.CaptureFixture[str], level: str
):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 2
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    onnxruntime.InferenceSession(str(folder / GRAPH_FILE), options)
    assert capfd.readouterr() == ("", "")


def test_logits_are_those_of_the_wanted_rows(folder: pathlib.Path):
    ids = list(range(300, 320))
    every = OnnxLoop(folder).run(ids, list(range(20)))
    some = OnnxLoop(folder).run(ids, [19, 3])
    assert every["logits"].shape == (20, 700)
    np.testing.assert_allclose(some["logits"], every["logits"][[19, 3]], rtol=0, atol=1e-5)


def test_top_ids_and_log_sum_exp_belong_to_the_logits(folder: pathlib.Path):
    found = OnnxLoop(folder).run([300, 301, 302])
    logits = found["logits"][0].astype(np.float64)
    assert found["topk_ids"][0].tolist() == np.argsort(-logits, kind="stable")[:64].tolist()
    np.testing.assert_array_equal(found["topk_values"][0], found["logits"][0][found["topk_ids"][0]])
    assert found["lse"][0] == pytest.approx(np.log(np.exp(logits).sum()), abs=1e-5)


def test_no_wanted_row_skips_the_head_and_fills_the_cache(folder: pathlib.Path):
    loop, whole = OnnxLoop(folder), OnnxLoop(folder)
    found = loop.run(list(range(300, 330)), wanted=[])
    assert found["logits"].shape == (0, 700)
    assert found["topk_ids"].shape == (0, 64)
    assert found["lse"].shape == (0,)
    expected = whole.run(list(range(300, 332)))["logits"]
    np.testing.assert_allclose(loop.run([330, 331])["logits"], expected, rtol=0, atol=1e-4)


def test_ragged_rows_in_shared_caches_are_each_as_alone(folder: pathlib.Path):
    """Three rows of 9, 1 and 5 ids decode together; past and present are the same memory."""
    prompts = [list(range(300, 309)), [400], list(range(500, 505))]
    loop = OnnxLoop(folder, CONTEXT)
    caches = shared_caches(loop, len(prompts))
    for row, prompt in enumerate(prompts):
        if prompt[:-1]:
            views = {name: cache[row : row + 1] for name, cache in caches.items()}
            run_shared(loop, inputs(loop, [prompt[:-1]], [len(prompt) - 1]), views)
    last = [[prompt[-1]] for prompt in prompts]
    logits = run_shared(loop, inputs(loop, last, [len(prompt) for prompt in prompts]), caches)
    for row, prompt in enumerate(prompts):
        alone = OnnxLoop(folder, CONTEXT).run(prompt)["logits"][0]
        np.testing.assert_allclose(logits[row], alone, rtol=0, atol=1e-4)


def shared_caches(loop: OnnxLoop, rows: int) -> Inputs:
    shape = (rows, loop.artifact.kv_heads[0], CONTEXT, loop.artifact.head_size)
    names = [name for name in loop.caches if name.startswith("past_")]
    return {name: np.zeros(shape, np.float32) for name in names}


def inputs(loop: OnnxLoop, rows: list[list[int]], totals: list[int]) -> Inputs:
    assert loop.artifact.onnx is not None
    width = len(rows[0])
    return {
        "inputs_embeds": np.stack(
            [looked_up(loop.weights, loop.artifact.onnx.embedding, row) for row in rows]
        ),
        "seqlens_k": np.array(totals, np.int32) - 1,
        "total": np.array(max(totals), np.int32),
        "logit_rows": np.arange(len(rows), dtype=np.int64) * width + width - 1,
        **loop.rope,
    }


def run_shared(loop: OnnxLoop, feeds: Inputs, caches: Inputs) -> npt.NDArray[np.float32]:
    """Runs with each present bound to its past's memory; gives the logits."""
    binding = loop.session.io_binding()
    for name, value in feeds.items():
        binding.bind_cpu_input(name, np.ascontiguousarray(value))
    for name, cache in caches.items():
        place = ("cpu", 0, np.float32, cache.shape, cache.ctypes.data)
        binding.bind_input(name, *place)
        binding.bind_output(name.replace("past", "present"), *place)
    binding.bind_output("logits", "cpu")
    loop.session.run_with_iobinding(binding)
    return binding.get_outputs()[-1].numpy()


def stacked(folder: pathlib.Path, count: int) -> OnnxLoop:
    """The same weights, whatever the count."""
    own = folder / str(count)
    own.mkdir(exist_ok=True)
    return OnnxLoop(
        converted(
            own,
            architecture="qwen3vl",
            types="Q8_0",
            metadata={"qwen3vl.n_deepstack_layers": count},
        )
    )


@pytest.mark.parametrize("count", [1, 2])
def test_text_is_the_same_to_the_bit_where_images_may_add_something(
    tmp_path: pathlib.Path, count: int
):
    plain, deep = stacked(tmp_path, 0), stacked(tmp_path, count)
    for ids in (list(range(300, 330)), [330], [331, 332]):
        expected, found = plain.run(ids), deep.run(ids)
        for name in ("logits", "hidden", "lse"):
            np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("count", [1, 2])
def test_what_an_image_adds_after_a_block_is_added_to_its_own_position(
    tmp_path: pathlib.Path, count: int
):
    """Position 20 is told something after the last block of `count`; those before it see nothing."""
    plain = stacked(tmp_path, count)
    deep = OnnxLoop(tmp_path / str(count) / "model-onnx-cpu")
    vectors = plain.embedded(list(range(300, 330)))
    told = vectors.copy()
    told[20, -256:] += 0.5
    expected = plain.run_vectors(vectors, [19, 20, 29])["hidden"]
    found = deep.run_vectors(told, [19, 20, 29])["hidden"]
    np.testing.assert_array_equal(found[0], expected[0])
    assert np.abs(found[1] - expected[1]).max() > 0.01
    # After the last block nothing is left by which others could see it.
    assert bool(np.abs(found[2] - expected[2]).max() > 1e-4) == (count == 1)
