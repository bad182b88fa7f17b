"""Images in mlx-lm's modules: vectors, masks, sums and angles arrive, and nothing else changes."""

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from backends.mlx import mlx_lm_internals as internals
from backends.mlx.mlx_lm_images import Angles, ImageInputs, RunImages
from backends.types import EngineError
from tests.backends.mlx.tiny_mlx import EMBEDDING, GEMMA2, HYBRID, LLAMA, WINDOWS

GRANITE = LLAMA | {
    "model_type": "granite", "logits_scaling": 2.0, "attention_multiplier": 0.25,
    "embedding_multiplier": 12.0, "residual_multiplier": 0.5, "max_position_embeddings": 512,
    "attention_bias": False, "mlp_bias": False, "rope_theta": 10000.0,
}  # fmt: skip
QWEN2 = LLAMA | {"model_type": "qwen2", "rope_theta": 10000.0}
QWEN3 = LLAMA | {
    "model_type": "qwen3", "head_dim": 16, "rope_theta": 10000.0, "max_position_embeddings": 512,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "gemma2": LLAMA | GEMMA2,
    "gemma3": WINDOWS,
    "granite": GRANITE,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "qwen3_next": HYBRID,
}
IDS = tuple(3 + (i * i + 3 * i) % 211 for i in range(40))
BEGIN, END = 9, 23


@functools.cache
def model_of(name: str, *, is_sectioned: bool = False) -> tuple[nn.Module, ImageInputs]:
    config = CONFIGS[name]
    module = internals.submodule(f"models.{config['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(config))
    mx.random.seed(1)
    # Norms too are not what they begin as, so that no scale is lost without notice.
    parameters: Any = tree_flatten(model.parameters())
    drawn = [
        (path, mx.random.normal(array.shape) * (1.5 / array.shape[-1] ** 0.5))
        for path, array in parameters
    ]
    model.load_weights(drawn)
    model.eval()
    return model, ImageInputs(model, config, is_sectioned=is_sectioned)


def distance(one: mx.array, other: mx.array) -> float:
    return float(np.abs(np.array(one) - np.array(other)).max())


def table_of(model: Any) -> mx.array:
    return model.model.embed_tokens.weight


def at_image(rows: mx.array, begin: int = BEGIN, end: int = END) -> RunImages:
    """`rows` for the positions from `begin` on, in a run of IDS."""
    vectors = mx.zeros((len(IDS), rows.shape[-1]))
    vectors[begin:end] = rows
    places = mx.arange(len(IDS))[:, None]
    return RunImages(vectors, (places >= begin) & (places < end))


def logits(model: Any, ids: tuple[int, ...] = IDS) -> mx.array:
    return model(mx.array([ids]), cache=internals.make_caches(model))[0]


def blanked() -> tuple[int, ...]:
    return (*IDS[:BEGIN], *[0] * (END - BEGIN), *IDS[END:])


def factor_of(name: str) -> float:
    """What these modules multiply text's embeddings by, but no image's."""
    return EMBEDDING**0.5 if name.startswith("gemma") else 1.0


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_vectors_of_the_table_are_as_good_as_their_ids(name: str):
    model, inputs = model_of(name)
    rows = table_of(model)[mx.array(IDS[BEGIN:END])] * factor_of(name)
    expected = logits(model)
    with inputs.giving(at_image(rows)):
        found = logits(model, blanked())
    assert distance(found, expected) < 1e-5
    assert distance(logits(model, blanked()), expected) > 1e-2


def test_nothing_of_a_run_is_left_for_the_next():
    model, inputs = model_of("llama")
    expected = logits(model)
    with inputs.giving(at_image(mx.ones((END - BEGIN, EMBEDDING)))):
        logits(model)
    assert mx.array_equal(logits(model), expected)


def test_names_and_classes_are_those_of_before():
    model, _ = model_of("llama")
    module = internals.submodule("models.llama")
    plain = module.Model(module.ModelArgs.from_dict(LLAMA))
    names: list[Any] = [dict(tree_flatten(each.parameters())).keys() for each in (model, plain)]
    assert names[0] == names[1]
    blocks: Any = model
    assert isinstance(blocks.layers[0], module.TransformerBlock)
    assert str(blocks.layers[0].self_attn) == str(plain.layers[0].self_attn)


def test_what_is_added_comes_after_the_first_blocks():
    """Checked by a model whose blocks pass on what they are given: only the sums are left."""
    model, inputs = model_of("qwen3")
    blocks: Any = model
    rows = mx.random.normal((3, END - BEGIN, EMBEDDING))
    states: list[mx.array] = []
    norm = blocks.model.norm
    blocks.model.norm = lambda h: states.append(h) or h
    given = at_image(rows[0])
    added = tuple(at_image(each).vectors for each in rows[1:])
    try:
        for block in blocks.layers:
            block.self_attn.o_proj.weight *= 0
            block.mlp.down_proj.weight *= 0
        with inputs.giving(given._replace(added=added)):
            logits(model)
        expected = table_of(model)[mx.array(IDS)]
        expected[BEGIN:END] = rows.sum(axis=0)
        assert distance(states[0][0], expected) < 1e-5
    finally:
        blocks.model.norm = norm
        model_of.cache_clear()


@pytest.mark.parametrize("earlier", [0, 8, 70])
def test_positions_of_a_span_see_each_other(earlier: int):
    """Windows of 32; `earlier` positions are held before the run, once more than they hold."""
    model, inputs = model_of("gemma3")
    caches = internals.make_caches(model)
    if earlier:
        model(mx.array([[5 + i % 90 for i in range(earlier)]]), cache=caches)  # pyright: ignore[reportCallIssue]
    held = [internals.prefix_of(caches, earlier, earlier) for _ in range(3)]
    rows = mx.random.normal((END - BEGIN, EMBEDDING))
    changed = mx.array(rows)
    changed[-1] += 1.0
    given = at_image(rows)._replace(spans=((BEGIN, END),))
    outputs = [
        _states(model, inputs, each, caches)
        for each, caches in zip(
            (given, given._replace(vectors=at_image(changed).vectors), given._replace(spans=())),
            held,
            strict=True,
        )
    ]
    difference = mx.max(mx.abs(outputs[0] - outputs[1]), axis=-1)
    assert mx.all(difference[:BEGIN] == 0.0).item()
    assert mx.all(difference[BEGIN:] > 1e-6).item()
    causal = mx.max(mx.abs(outputs[0] - outputs[2]), axis=-1)
    assert mx.all(causal[:BEGIN] == 0.0).item()
    assert mx.all(causal[BEGIN:] > 1e-6).item()


def _states(model: Any, inputs: ImageInputs, given: RunImages, caches: Any) -> mx.array:
    with inputs.giving(given):
        return model.model(mx.array([blanked()]), cache=caches)[0]


def test_a_module_that_makes_more_of_ids_is_refused_by_name():
    with pytest.raises(EngineError, match="gemma3n takes no images"):
        ImageInputs(nn.Module(), {"model_type": "gemma3n"}, is_sectioned=False)


def angles_of(places: np.ndarray) -> Angles:
    turns = places[:, None] * 10000.0 ** (-np.arange(8) / 8)
    return Angles(mx.array(np.cos(turns), mx.float32), mx.array(np.sin(turns), mx.float32))


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_angles_of_places_are_the_rotation_of_the_module(name: str):
    model, inputs = model_of(name, is_sectioned=True)
    expected = logits(model)
    with inputs.giving(None, angles_of(np.arange(len(IDS)))):
        assert distance(logits(model), expected) < 1e-4
    with inputs.giving(None, angles_of(np.arange(len(IDS)) // 2)):
        assert distance(logits(model), expected) > 1e-2


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_rows_of_a_batch_have_shifts_of_their_own(name: str):
    model, inputs = model_of(name, is_sectioned=True)
    call: Any = model
    shifts, rows, alone = (-5, 0, 3), [], []
    for shift, length in zip(shifts, (20, 12, 30), strict=True):
        caches = internals.make_caches(model)
        with inputs.giving(None, None, [shift]):
            call(mx.array([IDS[:length]]), cache=caches)
            rows.append(caches)
            alone.append(_next(call, internals.prefix_of(caches, length, length), [[7]])[0])
    with inputs.giving(None, None, shifts):
        together = _next(call, internals.batch_of(rows), [[7]] * 3)
    assert distance(together, mx.stack(alone)) < 1e-4
    # A rotation by the distance alone: shifting all of a row alike changes nothing.
    plain = _next(call, internals.batch_of(rows), [[7]] * 3)
    assert distance(plain[1], alone[1]) < 1e-4
    assert distance(plain[0], alone[0]) > 1e-3


def _next(model: Any, caches: Any, ids: list[list[int]]) -> mx.array:
    return model(mx.array(ids), cache=caches)[:, -1]
