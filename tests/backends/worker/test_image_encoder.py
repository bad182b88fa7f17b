"""The thread for images: on a real session of ONNX Runtime, and on a tower that waits for its cue."""

from __future__ import annotations

import pathlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from backends.onnx import backend as onnx_backend
from backends.types import EngineError, Load
from backends.vision.plan import Tower
from backends.vision.sight import PlannedImage, Sight
from backends.worker.image_encoder import ImageEncoded, ImageEncoder, ImagesReady, tower_loader
from converters.artifact import GRAPH_FILE
from converters.vision_artifact import VisionArtifact
from tests.backends.vision.picture_files import exif, file_of, picture
from tests.backends.vision.plain_kind import PATCH, plain_sight, vision_artifact, write_vision
from tests.backends.worker.worker_client import wait_until

WIDTH = 4
SECONDS = 20


def write_tower(folder: pathlib.Path) -> None:
    """patches [1, P, 48] × [48, 4]: red, green and blue of each patch, and their sum."""
    write_vision(folder, vision_artifact(WIDTH))
    weights = np.zeros((3 * PATCH * PATCH, WIDTH), np.float32)
    for channel in range(3):
        weights[channel * PATCH**2 : (channel + 1) * PATCH**2, channel] = 1 / PATCH**2
    weights[:, 3] = 1
    patches = helper.make_tensor_value_info("patches", TensorProto.FLOAT, [1, "P", 48])
    found = helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, [1, "P", WIDTH])
    product = helper.make_node("MatMul", ["patches", "w"], ["embeddings"])
    graph = helper.make_graph(
        [product], "tower", [patches], [found], [numpy_helper.from_array(weights, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, folder / GRAPH_FILE)


class CuedTower:
    """Tells of each run, and ends it when it is let go or interrupted. The numbers are the image's."""

    def __init__(self) -> None:
        self.artifact: VisionArtifact = vision_artifact(WIDTH)
        self.begun: queue.SimpleQueue[float] = queue.SimpleQueue()
        self.cues: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.row_break = None
        self.is_closed = False
        self.threads: set[int] = set()

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        self.threads.add(threading.get_ident())
        patches = np.asarray(inputs["patches"], np.float32)
        self.begun.put(float(patches.mean()))
        cue = self.cues.get(timeout=SECONDS)
        if cue == "interrupted":
            raise EngineError("cancelled", "interrupted")
        if cue == "fails":
            raise EngineError("internal", "this run failed")
        if cue == "breaks":
            raise RuntimeError("the runtime broke")
        if cue == "nonsense":
            return np.full((1, patches.shape[1], WIDTH), np.nan, np.float32)
        if cue == "short":
            return np.zeros((1, 1, WIDTH), np.float32)
        return np.repeat(patches.mean(axis=2, keepdims=True), WIDTH, axis=2)

    def interrupt(self) -> None:
        self.cues.put("interrupted")

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.is_closed = True


class Rig:
    """An encoder, its posts, and the towers it loaded."""

    def __init__(self, sight: Sight, load: Callable[[], Tower], **options: Any) -> None:
        self.sight = sight
        self.posts: queue.SimpleQueue[ImageEncoded | ImagesReady] = queue.SimpleQueue()
        self.towers: list[Tower] = []

        def loaded() -> Tower:
            self.towers.append(load())
            return self.towers[-1]

        self.encoder = ImageEncoder(sight, loaded, self.posts.put, **options)

    def plan(self, *colours: int, size: tuple[int, int] = (8, 4)) -> list[PlannedImage]:
        """One grey image for each."""
        files = (file_of(Image.new("RGB", size, (c, c, c))) for c in colours)
        return [self.sight.plan(data, f"image {n}") for n, data in enumerate(files, 1)]

    def encode(self, name: str, *colours: int, **options: Any) -> list[PlannedImage]:
        images = self.plan(*colours, **options)
        self.encoder.encode(name, images)
        return images

    def ready(self) -> ImagesReady:
        while True:
            post = self.posts.get(timeout=SECONDS)
            if isinstance(post, ImagesReady):
                return post

    def vectors(self, image: PlannedImage, post: ImagesReady) -> NDArray[np.float32]:
        assert not isinstance(post.vectors, EngineError), post.vectors
        return np.frombuffer(post.vectors[image.digest][0], "<f4").reshape(-1, WIDTH)


@pytest.fixture
def tower() -> CuedTower:
    return CuedTower()


@pytest.fixture
def rig(tower: CuedTower) -> Iterator[Rig]:
    made = Rig(plain_sight(WIDTH), lambda: tower)
    yield made
    tower.cues.put("interrupted")
    assert made.encoder.close(SECONDS)


@pytest.fixture
def real(tmp_path: pathlib.Path) -> Iterator[Rig]:
    write_tower(tmp_path)
    load = Load(request_id="l", backend="onnx", artifact="", projector=str(tmp_path), threads=1)
    sight = plain_sight(WIDTH)
    made = Rig(sight, tower_loader(lambda: onnx_backend, sight, load))
    yield made
    assert made.encoder.close(SECONDS)


def test_a_real_tower_sees_the_picture_upright(real: Rig):
    turned = file_of(picture(8, 16), "PNG", exif=exif(3))
    image = real.sight.plan(turned, "image 1")
    real.encoder.encode("a", [image])
    post = real.ready()
    found = real.vectors(image, post)
    pixels = np.asarray(picture(8, 16), np.float32)[::-1, ::-1] / 255
    means = pixels.reshape(4, PATCH, 2, PATCH, 3).mean(axis=(1, 3)).reshape(8, 3)
    assert post.request_id == "a"
    assert np.allclose(found[:, :3], means, atol=1e-5)
    assert np.allclose(found[:, 3], means.sum(axis=1) * PATCH**2, rtol=1e-5)
    assert found[0, 2] > 0.7 > 0.1 > found[0, 0]  # the lower half came up


def test_many_requests_at_once_get_their_own_images(real: Rig):
    wanted = {f"r{n}": real.plan(n, 100 + n % 7, 3 * n) for n in range(40)}
    for name, images in wanted.items():
        real.encoder.encode(name, images)
    for _ in wanted:
        post = real.ready()
        number = int(post.request_id[1:])
        colours = (number, 100 + number % 7, 3 * number)
        for image, colour in zip(wanted[post.request_id], colours, strict=True):
            assert np.allclose(real.vectors(image, post)[:, 0], colour / 255, atol=1e-6)
    assert len(real.towers) == 1


def test_nothing_is_loaded_before_the_first_image(tower: CuedTower):
    before = set(threading.enumerate())
    rig = Rig(plain_sight(WIDTH), lambda: tower)
    rig.encoder.encode("none", [])
    assert rig.ready().vectors == {}
    assert set(threading.enumerate()) == before
    assert rig.encoder.close(0)
    assert rig.towers == []


def test_the_tower_lives_on_one_thread_that_is_not_the_callers(rig: Rig, tower: CuedTower):
    rig.encode("a", 10)
    tower.cues.put("go")
    rig.ready()
    assert rig.encoder.close(SECONDS)
    assert tower.is_closed
    assert len(tower.threads) == 1
    assert threading.get_ident() not in tower.threads


def test_an_image_asked_for_twice_at_once_is_encoded_once(rig: Rig, tower: CuedTower):
    (image,) = rig.encode("a", 10)
    tower.begun.get(timeout=SECONDS)
    rig.encode("b", 10, 10)
    tower.cues.put("go")
    first, second = rig.ready(), rig.ready()
    assert {first.request_id, second.request_id} == {"a", "b"}
    assert np.array_equal(rig.vectors(image, first), rig.vectors(image, second))
    assert tower.begun.empty()
    rig.encode("c", 10)
    assert rig.ready().request_id == "c"
    assert tower.begun.empty()
    assert rig.encoder.cached_bytes == 2 * WIDTH * 4


def test_requests_take_turns_and_tell_of_each_image(rig: Rig, tower: CuedTower):
    rig.encode("many", 51, 102, 153)
    assert tower.begun.get(timeout=SECONDS) == pytest.approx(0.2)
    rig.encode("one", 204)
    for expected in (0.8, 0.4, 0.6):
        tower.cues.put("go")
        assert tower.begun.get(timeout=SECONDS) == pytest.approx(expected)
    tower.cues.put("go")
    posts = [rig.posts.get(timeout=SECONDS) for _ in range(4)]
    assert [(type(post).__name__, post.request_id) for post in posts] == [
        ("ImageEncoded", "many"),
        ("ImagesReady", "one"),
        ("ImageEncoded", "many"),
        ("ImagesReady", "many"),
    ]
    assert rig.encoder.moved >= 8


def test_what_was_cancelled_in_the_queue_is_never_run(rig: Rig, tower: CuedTower):
    rig.encode("a", 51)
    assert tower.begun.get(timeout=SECONDS) == pytest.approx(0.2)
    rig.encode("b", 102)
    rig.encode("c", 153)
    rig.encoder.cancel("b")
    tower.cues.put("go")
    assert rig.ready().request_id == "a"
    assert tower.begun.get(timeout=SECONDS) == pytest.approx(0.6)
    tower.cues.put("go")
    assert rig.ready().request_id == "c"
    rig.encoder.cancel("c")  # it is done: nothing happens


def test_a_run_that_nobody_wants_is_interrupted(rig: Rig, tower: CuedTower):
    rig.encode("a", 51)
    tower.begun.get(timeout=SECONDS)
    rig.encoder.cancel("a")
    rig.encode("b", 102)
    assert tower.begun.get(timeout=SECONDS) == pytest.approx(0.4)
    tower.cues.put("go")
    assert rig.ready().request_id == "b"
    assert rig.posts.empty()
    assert rig.encoder.cached_bytes == 2 * WIDTH * 4  # of the other image only


def test_a_run_that_another_request_wants_goes_on(rig: Rig, tower: CuedTower):
    rig.encode("a", 51)
    tower.begun.get(timeout=SECONDS)
    rig.encode("b", 51)
    rig.encoder.cancel("a")
    tower.cues.put("go")
    assert rig.ready().request_id == "b"
    assert rig.posts.empty()


def test_who_comes_while_a_run_is_interrupted_has_it_run_anew(rig: Rig, tower: CuedTower):
    rig.encode("a", 51)
    tower.begun.get(timeout=SECONDS)
    with rig.encoder._changed:  # the thread cannot tell of the interruption before "b" is there
        rig.encoder.cancel("a")
        rig.encoder.encode("b", rig.plan(51))
    tower.begun.get(timeout=SECONDS)
    tower.cues.put("go")
    post = rig.ready()
    assert post.request_id == "b"
    assert not isinstance(post.vectors, EngineError)


def test_between_the_runs_of_one_image_a_cancel_is_seen(rig: Rig, tower: CuedTower):
    rig.encode("a", 51, size=(4, 16))  # four rows, four runs
    tower.begun.get(timeout=SECONDS)
    tower.cues.put("go")
    tower.begun.get(timeout=SECONDS)
    rig.encoder.cancel("a")
    rig.encode("b", 102)
    assert tower.begun.get(timeout=SECONDS) == pytest.approx(0.4)
    tower.cues.put("go")
    assert rig.ready().request_id == "b"


def test_cancelling_while_the_tower_loads_ends_before_the_first_run():
    may_load, is_loading = threading.Event(), threading.Event()
    tower = CuedTower()

    def load() -> Tower:
        is_loading.set()
        may_load.wait(SECONDS)
        return tower

    rig = Rig(plain_sight(WIDTH), load)
    rig.encode("a", 51)
    assert is_loading.wait(SECONDS)
    rig.encoder.cancel("a")
    rig.encode("b", 102)
    may_load.set()
    assert tower.begun.get(timeout=SECONDS) == pytest.approx(0.4)
    tower.cues.put("go")
    assert rig.ready().request_id == "b"
    assert rig.encoder.close(SECONDS)


@pytest.mark.parametrize(
    ("cue", "reason"),
    [
        ("fails", "image 1: this run failed"),
        ("breaks", "image 1: RuntimeError: the runtime broke"),
        ("nonsense", "image 1: the tower gave numbers that are not finite"),
        ("short", "image 1: the tower gave [(1, 4)], not [(2, 4)]"),
        ("interrupted", "image 1: interrupted"),
    ],
)
def test_a_run_that_fails_ends_its_request_only(rig: Rig, tower: CuedTower, cue: str, reason: str):
    rig.encode("a", 51, 153)
    tower.begun.get(timeout=SECONDS)
    rig.encode("b", 102)
    tower.cues.put(cue)
    post = rig.ready()
    assert (post.request_id, str(post.vectors)) == ("a", reason)
    assert tower.begun.get(timeout=SECONDS) == pytest.approx(0.4)
    tower.cues.put("go")
    assert rig.ready().request_id == "b"
    # What a runtime holds after an unknown error is unknown: it is opened anew.
    assert len(rig.towers) == (2 if cue == "breaks" else 1)
    assert tower.is_closed == (cue == "breaks")


def test_a_broken_file_ends_its_request_by_name(rig: Rig):
    whole = file_of(picture(8, 8), "JPEG")
    images = [rig.sight.plan(whole[:-30], "image 7")]
    rig.encoder.encode("a", images)
    post = rig.ready()
    assert isinstance(post.vectors, EngineError)
    assert post.vectors.code == "invalid"
    assert str(post.vectors).startswith("image 7 cannot be read: ")


def test_a_tower_that_cannot_be_loaded_is_tried_again():
    rooms = [MemoryError(), EngineError("load", "it is broken"), None]
    tower = CuedTower()

    def load() -> Tower:
        if (problem := rooms.pop(0)) is not None:
            raise problem
        return tower

    rig = Rig(plain_sight(WIDTH), load)
    codes: list[str] = []
    for name in "ab":
        rig.encode(name, 51)
        found = rig.ready().vectors
        assert isinstance(found, EngineError)
        codes.append(found.code)
    rig.encode("c", 51)
    tower.cues.put("go")
    assert rig.ready().request_id == "c"
    assert codes == ["memory", "load"]
    assert rig.encoder.close(SECONDS)


def test_a_runtime_without_towers_says_so():
    load = Load(request_id="l", backend="none", artifact="", projector="/nowhere")
    sight = plain_sight(WIDTH)
    rig = Rig(sight, tower_loader(lambda: object(), sight, load))  # type: ignore[arg-type, return-value]
    rig.encode("a", 51)
    found = rig.ready().vectors
    assert isinstance(found, EngineError)
    assert (found.code, str(found)) == ("unsupported", "image 1: this runtime has no vision towers")
    assert rig.encoder.close(SECONDS)


def test_closing_ends_a_run_and_forgets_the_queue(rig: Rig, tower: CuedTower):
    rig.encode("a", 51)
    rig.encode("b", 102)
    tower.begun.get(timeout=SECONDS)
    assert rig.encoder.close(SECONDS)
    assert rig.posts.empty()
    assert tower.is_closed


def test_an_image_larger_than_the_cache_serves_all_that_wait_for_it(tower: CuedTower):
    rig = Rig(plain_sight(WIDTH), lambda: tower, cache_bytes=8)
    rig.encode("a", 51)
    tower.begun.get(timeout=SECONDS)
    rig.encode("b", 51)
    tower.cues.put("go")
    assert {rig.ready().request_id, rig.ready().request_id} == {"a", "b"}
    assert rig.encoder.cached_bytes == 0
    rig.encode("c", 51)
    tower.cues.put("go")
    assert rig.ready().request_id == "c"
    wait_until(lambda: tower.begun.qsize() == 1)
    assert rig.encoder.close(SECONDS)
