"""Vision towers on ONNX Runtime: what a run gives, how it ends early, what is not taken."""

from __future__ import annotations

import pathlib
import threading
import time
from typing import Any

import msgspec
import numpy as np
import onnx
import psutil
import pytest

from backends.onnx.tower import OnnxTower, open_tower
from backends.types import EngineError
from converters.artifact import GRAPH_FILE, WEIGHTS_FILE
from converters.vision_artifact import VISION_FILE, read_vision
from tests.models.random_vision import make_projector
from tests.parity.vision_onnx import converted_tower

PATCHES, COLUMNS, WIDTH = 256, 147, 128


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    return converted_tower(make_projector(tmp_path / "mmproj.gguf", "gemma3", types="F16"))


def random_patches(tiles: int) -> dict[str, Any]:
    drawn = np.random.default_rng(0).standard_normal((tiles, PATCHES, COLUMNS))
    return {"patches": drawn.astype(np.float32)}


def test_tiles_of_one_run_do_not_see_each_other(folder: pathlib.Path) -> None:
    tower, given = open_tower(folder, threads=1), random_patches(3)
    together = tower.run(given)
    assert together.shape == (3, 16, WIDTH) and together.dtype == np.float32
    alone = [tower.run({"patches": tile[None]})[0] for tile in given["patches"]]
    np.testing.assert_allclose(together, np.stack(alone), rtol=2e-3, atol=2e-3)
    assert tower.row_break is None


def interrupted(tower: OnnxTower, given: dict[str, Any]) -> EngineError:
    """What a run raises that another thread takes back, as often as it needs to be begun."""
    failures: list[EngineError] = []

    def run() -> None:
        try:
            tower.run(given)
        except EngineError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        tower.interrupt()
        time.sleep(0.001)
    thread.join()
    (failure,) = failures
    return failure


def test_a_run_that_is_interrupted_says_so_and_the_next_one_is_not(folder: pathlib.Path) -> None:
    tower = open_tower(folder, threads=1)
    tower.interrupt()
    expected = tower.run(random_patches(1))
    assert interrupted(tower, random_patches(200)).code == "cancelled"
    np.testing.assert_array_equal(tower.run(random_patches(1)), expected)


def test_what_is_not_finite_is_no_answer(folder: pathlib.Path) -> None:
    tower = open_tower(folder, threads=1)
    with pytest.raises(EngineError, match="not finite"):
        tower.run({"patches": np.full((1, PATCHES, COLUMNS), np.nan, np.float32)})
    with pytest.raises(EngineError, match="run failed"):
        tower.run({"patches": np.zeros((1, PATCHES, 3), np.float32)})
    tower.close()
    with pytest.raises(EngineError, match="closed"):
        tower.run(random_patches(1))


def test_a_graph_and_a_description_that_disagree_are_refused(folder: pathlib.Path) -> None:
    artifact = read_vision(folder)
    for change in ({"inputs": ("patches", "cos")}, {"has_row_break": True}):
        wrong = msgspec.structs.replace(artifact, **change)
        (folder / VISION_FILE).write_bytes(msgspec.json.encode(wrong))
        with pytest.raises(EngineError, match="disagree"):
            open_tower(folder)
    (folder / VISION_FILE).write_bytes(b"{}")
    with pytest.raises(EngineError, match="no readable vision artifact"):
        open_tower(folder)


def test_matrices_of_halves_are_widened_first_of_all_nodes(folder: pathlib.Path) -> None:
    """So the runtime does it right before each product; see `GraphBuilder.widened`."""
    nodes = list(onnx.load(folder / GRAPH_FILE, load_external_data=False).graph.node)
    widening = [node.op_type == "Cast" and node.output[0].endswith(".widened") for node in nodes]
    count = sum(widening)
    assert count > 18 and all(widening[:count])


def test_an_open_tower_keeps_no_copy_of_its_weights(tmp_path: pathlib.Path) -> None:
    """40 MB of zeros stand in for matrices: only their size matters."""
    folder = converted_tower(make_projector(tmp_path / "mmproj.gguf", "gemma3", types="F16"))
    path = folder / GRAPH_FILE
    graph = onnx.load(path, load_external_data=False)
    large = next(each for each in graph.graph.initializer if each.name.endswith("ffn_up.values"))
    sides = (large.dims[0], large.dims[1], 1600)
    extra = onnx.TensorProto(name="large", data_type=large.data_type, dims=sides)
    extra.data_location = onnx.TensorProto.EXTERNAL
    end = (folder / WEIGHTS_FILE).stat().st_size
    nbytes = 2 * sides[0] * sides[1] * sides[2]
    for key, value in {"location": WEIGHTS_FILE, "offset": -(-end // 4096) * 4096}.items():
        extra.external_data.add(key=key, value=str(value))
    extra.external_data.add(key="length", value=str(nbytes))
    graph.graph.initializer.append(extra)
    cast = onnx.helper.make_node("Cast", ["large"], ["large.widened"], to=onnx.TensorProto.FLOAT)
    peak = onnx.helper.make_node("ReduceMax", ["large.widened"], ["peak"], keepdims=0)
    output = graph.graph.node[-1].output[0]
    graph.graph.node[-1].output[0] = "embeddings_before"
    total = onnx.helper.make_node("Add", ["embeddings_before", "peak"], [output])
    graph.graph.node.extend([cast, peak, total])
    path.write_bytes(graph.SerializeToString())
    with (folder / WEIGHTS_FILE).open("r+b") as file:
        file.truncate(-(-end // 4096) * 4096 + nbytes)
    before = _private_bytes()
    tower = open_tower(folder, threads=1)
    assert _private_bytes() - before < nbytes // 2
    assert np.isfinite(tower.run(random_patches(1))).all()


def _private_bytes() -> int:
    """Memory of this process that no file stands behind."""
    found = psutil.Process().memory_info()
    return found.rss - getattr(found, "shared", 0)
