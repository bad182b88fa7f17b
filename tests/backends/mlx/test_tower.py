"""Vision towers on MLX: cut into pieces, interrupted, on threads of their own, in 16 bits."""

from __future__ import annotations

import json
import pathlib
import threading

import mlx.core as mx
import numpy as np
import pytest

from backends.mlx import backend, tower_parts
from backends.mlx.tower import MlxTower, open_tower
from backends.mlx.tower_form import AttentionForm
from backends.mlx.tower_parts import Piece, TowerArrays, attend, whole_pieces, window_pieces
from backends.types import EngineError, Load
from backends.vision.kinds import kind_of
from backends.vision.plan import TowerInputs
from converters.artifact import MLX_CONFIG_FILE
from converters.vision_artifact import VISION_FILE
from tests.backends.mlx.engine_rig import answers, greedy, load_tiny, prompt_of
from tests.backends.mlx.tiny_mlx import write_tiny_mlx
from tests.models.random_vision import EXACT_SIZES, make_projector, png
from tests.parity.vision_onnx import converted_tower, opened

KIND = "qwen2.5vl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("tower") / "mmproj.gguf"
    return converted_tower(make_projector(path, KIND, types="F16"), "mlx")


@pytest.fixture
def tower(folder: pathlib.Path) -> MlxTower:
    return open_tower(folder)


def inputs_for(tower: MlxTower, size: tuple[int, int] = EXACT_SIZES[KIND]) -> TowerInputs:
    form, image = tower.artifact.form, opened(png(*size, 5))
    kind = kind_of(form.projector)
    (inputs,) = kind.inputs(form, kind.plan(form, *size), image)
    return inputs


# ---- attention in pieces ----


def by_hand(segments: np.ndarray, x: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """Two heads of 8 numbers, in float64."""
    query, key, value = (x @ weights[f"{name}.weight"].T for name in "qkv")
    found = []
    for head in range(2):
        part = slice(8 * head, 8 * head + 8)
        scores = query[:, part] @ key[:, part].T / np.sqrt(8)
        scores[segments[:, None] != segments] = -np.inf
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        found.append(shares / shares.sum(axis=1, keepdims=True) @ value[:, part])
    return np.concatenate(found, axis=1) @ weights["o.weight"].T


@pytest.mark.parametrize("score_bytes", [1, 2000, 1 << 26])
@pytest.mark.parametrize(
    "segments",
    [
        np.zeros(60, np.int64),
        np.repeat(np.arange(6), 10),
        np.repeat(np.arange(4), (30, 2, 1, 27)),
        np.arange(60) % 7,  # not one behind the other
    ],
)
@pytest.mark.parametrize("window_patches", [1, 25, 1024])
def test_pieces_make_the_whole(
    monkeypatch: pytest.MonkeyPatch, segments: np.ndarray, score_bytes: int, window_patches: int
):
    monkeypatch.setattr(tower_parts, "SCORE_BYTES", score_bytes)
    monkeypatch.setattr(tower_parts, "_WINDOW_PATCHES", window_patches)
    drawn = np.random.default_rng(1)
    weights = {f"{name}.weight": drawn.normal(size=(16, 16)) / 4 for name in "qkvo"}
    x = drawn.normal(size=(60, 16))
    given = {name: mx.array(matrix.astype(np.float32)) for name, matrix in weights.items()}
    form = AttentionForm(
        heads=2, inputs=("q", "k", "v"), output="o", query_norm=None, key_norm=None,
        has_norm_per_head=False, is_windowed=True,
    )  # fmt: skip
    pieces = window_pieces(segments, 2)
    assert [piece.begin for piece in pieces[1:]] == [piece.end for piece in pieces[:-1]]
    assert all(
        _score_bytes(piece) <= score_bytes or piece.end == piece.begin + 1 for piece in pieces
    )
    arrays = TowerArrays(given, {}, mx.float32)
    tile = mx.array(x.astype(np.float32))[None]
    found = np.array(attend(arrays, form, tile, None, pieces, lambda part: part))[0]
    assert np.abs(found - by_hand(segments, x, weights)).max() < 1e-5


def _score_bytes(piece: Piece) -> int:
    return 4 * 2 * (piece.end - piece.begin) * (piece.last - piece.first)


def test_pieces_of_large_images_are_bounded():
    pieces = whole_pieces(1, 16, 16384)
    assert (pieces[0].begin, pieces[-1].end) == (0, 16384)
    assert all(
        4 * 16 * (piece.end - piece.begin) * 16384 <= tower_parts.SCORE_BYTES for piece in pieces
    )


# ---- runs ----


def test_an_interrupted_run_ends_and_the_next_is_whole(tower: MlxTower, monkeypatch):
    inputs = inputs_for(tower)
    expected = tower.run(inputs)
    evaluated = mx.eval

    def interrupted(*arrays: mx.array) -> None:
        tower.interrupt()
        evaluated(*arrays)

    with monkeypatch.context() as patched:
        patched.setattr(mx, "eval", interrupted)
        with pytest.raises(EngineError, match="interrupted") as caught:
            tower.run(inputs)
    assert caught.value.code == "cancelled"
    assert np.array_equal(tower.run(inputs), expected)


def test_a_tower_runs_beside_an_engine_on_another_thread(
    folder: pathlib.Path, tmp_path: pathlib.Path
):
    """Opened on one thread, run on another, while the engine decodes on its own: same numbers."""
    tower = open_tower(folder)
    inputs = inputs_for(tower)
    expected = tower.run(inputs)
    write_tiny_mlx(tmp_path)
    engine = load_tiny(tmp_path)
    request = greedy("a", prompt_of(60), 100)
    alone = answers(engine, request)
    found: list[np.ndarray] = []
    is_over = threading.Event()

    def look() -> None:
        while not is_over.is_set():
            found.append(tower.run(inputs))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        together = [answers(engine, request) for _ in range(12)]
    finally:
        is_over.set()
        thread.join()
    assert together == [alone] * 12
    assert len(found) > 3
    assert all(np.array_equal(each, expected) for each in found)
    engine.close()


def test_numbers_that_overflow_are_computed_in_wider_ones(
    folder: pathlib.Path, caplog: pytest.LogCaptureFixture
):
    """As on a GPU, where towers compute in the 16 bits that they are stored in."""
    wide = open_tower(folder)
    inputs = inputs_for(wide)
    narrow = MlxTower(folder, wide.artifact, wide._form, mx.float16)
    usual = wide.run(inputs)
    assert 0 < np.abs(narrow.run(inputs) - usual).max() < 0.05 * np.abs(usual).max()
    assert not caplog.messages
    inputs["patches"] = np.asarray(inputs["patches"], np.float32) * 3e4
    expected = wide.run(inputs)
    assert np.array_equal(narrow.run(inputs), expected)
    assert "overflow" in caplog.text


def test_what_is_not_finite_at_all_is_an_error(tower: MlxTower):
    inputs = inputs_for(tower)
    inputs["patches"] = np.full_like(inputs["patches"], np.nan)
    with pytest.raises(EngineError, match="not finite"):
        tower.run(inputs)


def test_memory_is_asked_for_before_anything_is_read(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("backends.mlx.device.available_bytes", lambda: 1 << 20)
    with pytest.raises(EngineError, match="the vision tower takes") as caught:
        open_tower(folder)
    assert caught.value.code == "memory"


def test_the_backend_opens_it(folder: pathlib.Path, tower: MlxTower):
    load = Load(request_id="load", backend="mlx", artifact="", projector=str(folder))
    opened_too = backend.load_tower(folder, tower.artifact, load)
    inputs = inputs_for(tower)
    assert np.array_equal(opened_too.run(inputs), tower.run(inputs))


def test_a_closed_tower_says_so(tower: MlxTower):
    inputs = inputs_for(tower)
    tower.close()
    with pytest.raises(EngineError, match="closed"):
        tower.run(inputs)


def _changed(folder: pathlib.Path, target: pathlib.Path, name: str, **changes: object) -> None:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).symlink_to(path)
    content = json.loads((folder / name).read_bytes()) | changes
    (target / name).unlink()
    (target / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (MLX_CONFIG_FILE, {"model_type": "llama"}, "no vision tower 'llama'"),
        (MLX_CONFIG_FILE, {"blocks": 3}, "not a vision tower"),
        (MLX_CONFIG_FILE, {"row_break": "v.post_ln.weight"}, "disagree"),
        (VISION_FILE, {"deepstack": 1}, "disagree"),
        (VISION_FILE, {"format": 99}, "format 99"),
    ],
)
def test_folders_that_are_no_towers_are_refused(
    folder: pathlib.Path, tmp_path: pathlib.Path, name: str, changes: dict, message: str
):
    _changed(folder, tmp_path / "changed", name, **changes)
    with pytest.raises(EngineError, match=message) as caught:
        open_tower(tmp_path / "changed")
    assert caught.value.code == "load"
