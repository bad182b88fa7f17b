"""Plans, patches and their order of the kinds for images of any size, without a tower."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray
from PIL import Image

from backends.vision.grid import Grid, fitted_size
from backends.vision.kinds import kind_of
from backends.vision.plan import ImagePlan, MarkupText, Vectors
from backends.vision.qwen_vl import window_order
from converters.vision_artifact import ImageForm

SIDES = (1, 2, 27, 28, 29, 41, 42, 43, 112, 640, 1999, 4096, 20000)


def form_of(projector: str, **changes: int) -> ImageForm:
    """As the published models have it."""
    patch = 16 if projector in ("qwen3vl_merger", "pixtral") else 14
    merge = 1 if projector == "pixtral" else 2
    step, most = patch * merge, 1024 if projector == "pixtral" else 4096
    form = ImageForm(
        projector=projector,
        patch_size=patch,
        merge=merge,
        min_pixels=8 * step**2,
        max_pixels=most * step**2,
        is_grouped=True,
        head_size=64 if projector == "pixtral" else 80,
        window_size=112 if projector == "qwen2.5vl_merger" else 0,
        grid_size=48 if projector == "qwen3vl_merger" else 0,
    )
    return replace(form, **changes)


KINDS = ("qwen2vl_merger", "qwen2.5vl_merger", "qwen3vl_merger", "pixtral")


@pytest.mark.parametrize("projector", KINDS)
def test_no_size_exceeds_the_bounds(projector: str):
    form = form_of(projector)
    step = form.patch_size * form.merge
    for width, height in itertools.product(SIDES, SIDES):
        plan = kind_of(projector).plan(form, width, height)
        assert plan.width % step == plan.height % step == 0
        assert form.min_pixels <= plan.width * plan.height <= form.max_pixels
        (vectors,) = plan.vectors
        rows, columns = plan.height // step, plan.width // step
        breaks = rows - 1 if projector == "pixtral" else 0
        assert vectors.length == rows * columns + breaks
        if max(width, height) / min(width, height) < 10:
            assert abs(math.log(plan.width / plan.height * height / width)) < math.log(2.01)


def test_sizes_are_those_of_the_original_processor():
    """Worked out with Hugging Face's `smart_resize`, factor 28, 6272 to 3211264 pixels."""
    found = [
        fitted_size(*size, step=28, least=6272, most=3211264)
        for size in ((168, 112), (640, 480), (70, 42), (10, 10), (4000, 3000), (1, 500))
    ]
    assert found == [(168, 112), (644, 476), (112, 84), (84, 84), (2044, 1540), (28, 504)]


def test_what_stands_around_the_vectors():
    plan = kind_of("qwen2vl_merger").plan(form_of("qwen2vl_merger"), 168, 112)
    start, end = MarkupText("<|vision_start|>"), MarkupText("<|vision_end|>")
    assert plan.parts == (start, Vectors(length=24, rows=4, columns=6), end)
    plan = kind_of("pixtral").plan(form_of("pixtral"), 160, 64)
    assert plan.parts == (Vectors(length=4 * 10 + 3), MarkupText("[IMG_END]"))


def given_to(
    projector: str, form: ImageForm, image: Image.Image
) -> tuple[ImagePlan, dict[str, NDArray[Any]]]:
    """The plan of the image, and the tower's one run for it."""
    kind = kind_of(projector)
    plan = kind.plan(form, *image.size)
    (given,) = kind.inputs(form, plan, image)
    return plan, dict(given)


def numbered(width: int, height: int) -> Image.Image:
    """Red tells the column and green the row of a pixel, modulo 256; blue both."""
    row, column = np.mgrid[:height, :width]
    values = np.stack((column % 256, row % 256, (row // 256 * 16 + column // 256)), axis=-1)
    return Image.fromarray(values.astype(np.uint8))


def corners(patches: np.ndarray, form: ImageForm) -> list[tuple[int, int]]:
    """(column, row) of the first pixel of each patch, of an image that `numbered` made."""
    pixels = patches[0].reshape(-1, 3, form.patch_size, form.patch_size) * 0.5 + 0.5
    first = np.rint(pixels[:, :, 0, 0] * 255).astype(int)
    return [(red + blue % 16 * 256, green + blue // 16 * 256) for red, green, blue in first]


@pytest.mark.parametrize("projector", KINDS)
def test_patches_of_a_position_are_neighbours_and_know_their_place(projector: str):
    form = form_of(projector)
    step, side = form.patch_size * form.merge, form.patch_size
    size = 10 * step, 6 * step
    plan, given = given_to(projector, form, numbered(*size))
    assert (plan.width, plan.height) == size
    assert given["patches"].shape == (1, 60 * form.merge**2, 3 * side**2)
    assert {name: array.dtype.name for name, array in given.items()} == {
        name: "int64" if name in ("segments", "place_ids") else "float32" for name in given
    }
    found = corners(given["patches"], form)
    order, _ = window_order(form, Grid(6, 10))
    inner = list(itertools.product(range(form.merge), repeat=2))
    expected = [
        (position % 10 * step + x * side, position // 10 * step + y * side)
        for position in order
        for y, x in inner
    ]
    assert found == expected
    # The first frequency of either half is 1: the angle is the place itself.
    half, quarter = form.head_size // 2, form.head_size // 4
    assert given["cos"].shape == given["sin"].shape == (len(found), half)
    rows = np.array([y // side for _, y in found])
    columns = np.array([x // side for x, _ in found])
    np.testing.assert_allclose(given["cos"][:, 0], np.cos(rows), atol=1e-6)
    slower = 10000.0 ** (-2 / form.head_size) if projector == "pixtral" else 1.0
    np.testing.assert_allclose(given["sin"][:, quarter], np.sin(columns * slower), atol=1e-6)


def test_windows_are_whole_or_cut_off_at_the_edges():
    form = form_of("qwen2.5vl_merger")
    order, windows = window_order(form, Grid(6, 10))
    assert sorted(order.tolist()) == list(range(60))
    assert np.bincount(windows).tolist() == [16, 16, 8, 8, 8, 4]
    assert (np.diff(windows) >= 0).all()
    assert order[:6].tolist() == [0, 1, 2, 3, 10, 11]
    assert order[-4:].tolist() == [48, 49, 58, 59]


def test_vectors_come_back_in_raster_order():
    form = form_of("qwen2.5vl_merger")
    kind = kind_of("qwen2.5vl_merger")
    plan = kind.plan(form, 280, 168)
    order, _ = window_order(form, Grid(6, 10))
    given = order[:, None].astype(np.float32) + np.zeros((1, 60, 3), np.float32)
    (arranged,) = kind.arrange(form, plan, [given], None)
    np.testing.assert_array_equal(arranged[:, 0], np.arange(60))


def test_the_break_stands_behind_each_row_but_the_last():
    form, kind = form_of("pixtral"), kind_of("pixtral")
    plan = kind.plan(form, 64, 48)
    given = np.arange(12, dtype=np.float32)[None, :, None] + np.zeros((1, 12, 2), np.float32)
    (arranged,) = kind.arrange(form, plan, [given], np.array([-1, -2], np.float32))
    assert arranged[:, 0].tolist() == [0, 1, 2, 3, -1, 4, 5, 6, 7, -1, 8, 9, 10, 11]
    assert arranged[4].tolist() == [-1, -2]


def test_places_between_those_of_the_table():
    """Of a table that tells its own row and column, the mix tells where between corners a patch is."""
    form = form_of("qwen3vl_merger")
    _, given = given_to("qwen3vl_merger", form, numbered(320, 192))
    ids, weights = given["place_ids"], given["place_weights"]
    assert ids.shape == weights.shape == (240, 4)
    assert 0 <= ids.min() <= ids.max() == 48 * 48 - 1
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    found = corners(given["patches"], form)
    rows = np.array([y // 16 for _, y in found]) * (47 / 11)
    columns = np.array([x // 16 for x, _ in found]) * (47 / 19)
    np.testing.assert_allclose((ids // 48 * weights).sum(axis=1), rows, atol=1e-4)
    np.testing.assert_allclose((ids % 48 * weights).sum(axis=1), columns, atol=1e-4)


def test_of_a_table_of_the_same_size_each_place_is_its_own():
    form = form_of("qwen3vl_merger")
    _, given = given_to("qwen3vl_merger", form, numbered(768, 768))
    assert set(given["place_ids"][:, 0].tolist()) == set(range(48 * 48))
    np.testing.assert_allclose(given["place_weights"], [[1, 0, 0, 0]] * 48**2, atol=1e-6)


def test_other_sizes_are_stretched():
    image = Image.new("RGB", (300, 200), (255, 0, 51))
    plan, given = given_to("qwen2vl_merger", form_of("qwen2vl_merger"), image)
    assert (plan.width, plan.height) == (308, 196)
    pixels = given["patches"].reshape(-1, 3, 14 * 14)
    np.testing.assert_allclose(pixels[:, 0], 1.0)
    np.testing.assert_allclose(pixels[:, 1], -1.0)
    np.testing.assert_allclose(pixels[:, 2], -0.6, atol=1e-6)
