"""How images become tiles of one size, their markup and their patches."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from backends.vision.kinds import kind_of
from backends.vision.plan import ImagePlan, MarkupText, Vectors
from converters.vision_artifact import ImageForm

SIZE, PATCH, MERGE = 32, 8, 2
POSITIONS = 4
FORMS = {
    "gemma3": ImageForm(projector="gemma3", patch_size=PATCH, merge=MERGE, image_size=SIZE),
    "mlp": ImageForm(
        projector="mlp", patch_size=PATCH, image_size=SIZE, mean=(0.25, 0.5, 0.75), std=(1, 1, 1)
    ),
    "idefics3": ImageForm(
        projector="idefics3", patch_size=PATCH, merge=MERGE, image_size=SIZE, longest_edge=96
    ),
    "internvl": ImageForm(
        projector="internvl", patch_size=PATCH, merge=MERGE, image_size=SIZE, max_tiles=12
    ),
}


def planned(kind: str, width: int, height: int) -> ImagePlan:
    return kind_of(kind).plan(FORMS[kind], width, height)


def markup(plan: ImagePlan) -> str:
    """Texts with `*` for vectors."""
    return "".join("*" if isinstance(part, Vectors) else part.text for part in plan.parts)


def image_of(width: int, height: int) -> Image.Image:
    drawn = np.random.default_rng(5).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(drawn)


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("size", [(32, 32), (1, 1), (300, 7), (7, 300), (95, 64), (64, 33)])
def test_runs_give_as_many_positions_as_the_plan_counts(kind: str, size: tuple[int, int]) -> None:
    form, plan = FORMS[kind], planned(kind, *size)
    runs = list(kind_of(kind).inputs(form, plan, image_of(*size)))
    patches = (SIZE // PATCH) ** 2
    assert all(run["patches"].shape == (1, patches, 3 * PATCH**2) for run in runs)
    assert all(run["patches"].dtype == np.float32 for run in runs)
    length = patches // form.merge**2
    given = [np.full((1, length, 5), float(index), np.float32) for index in range(len(runs))]
    arranged = kind_of(kind).arrange(form, plan, given, None)
    assert [len(each) for each in arranged] == [part.length for part in plan.vectors]
    order = np.concatenate(arranged)[:, 0]
    np.testing.assert_array_equal(order, np.repeat(np.arange(len(runs)), length))


def test_markup() -> None:
    assert markup(planned("gemma3", 9, 5)) == "<start_of_image>*<end_of_image>"
    assert markup(planned("mlp", 9, 5)) == "*"
    assert markup(planned("internvl", 9, 5)) == "<img>*</img>"
    fake = "<fake_token_around_image>"
    expected = (
        f"{fake}<row_1_col_1>*{fake}<row_1_col_2>*{fake}<row_1_col_3>*\n"
        f"{fake}<row_2_col_1>*{fake}<row_2_col_2>*{fake}<row_2_col_3>*"
        f"\n\n{fake}<global-img>*{fake}"
    )
    assert markup(planned("idefics3", 96, 60)) == expected
    assert all(isinstance(part, MarkupText | Vectors) for part in planned("mlp", 3, 3).parts)


def test_idefics_makes_the_longer_side_as_long_as_it_should_be() -> None:
    assert planned("idefics3", 10, 10).tiles[-1] == (64, 64)
    wide, high = planned("idefics3", 400, 100), planned("idefics3", 100, 400)
    assert (wide.width, wide.height) == (96, 32) and (high.width, high.height) == (32, 96)
    small = ImageForm(
        projector="idefics3", patch_size=PATCH, merge=MERGE, image_size=SIZE, longest_edge=SIZE
    )
    alone = kind_of("idefics3").plan(small, 50, 50)
    assert markup(alone) == "<fake_token_around_image><global-img>*<fake_token_around_image>"
    assert len(list(kind_of("idefics3").inputs(small, alone, image_of(50, 50)))) == 1


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((32, 32), (1, 1)), ((80, 80), (3, 3)), ((160, 120), (4, 3)), ((20, 15), (4, 3)), ((60, 60), (2, 2)),
        ((400, 100), (4, 1)), ((30, 300), (1, 10)), ((64, 32), (2, 1)),
    ],
)  # fmt: skip
def test_internvl_takes_the_grid_of_the_nearest_shape(
    size: tuple[int, int], grid: tuple[int, int]
) -> None:
    plan = planned("internvl", *size)
    assert (plan.width // SIZE, plan.height // SIZE) == grid
    tiles = grid[0] * grid[1]
    assert plan.vectors[0].length == POSITIONS * (tiles + (tiles > 1))


def test_patches_are_cut_channel_by_channel() -> None:
    image, form = image_of(SIZE, SIZE), FORMS["gemma3"]
    plan = planned("gemma3", SIZE, SIZE)
    (run,) = kind_of("gemma3").inputs(form, plan, image)
    pixels = np.asarray(image).astype(np.float32)
    patch = pixels[8:16, 24:32].transpose(2, 0, 1).reshape(-1)
    expected = (patch / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    np.testing.assert_array_equal(run["patches"][0, 7], expected)


def test_llava_pads_with_the_mean_colour() -> None:
    """What stands above and below a wide image is nearly 0 once it is normalised."""
    form, plan = FORMS["mlp"], planned("mlp", 64, 32)
    white = Image.new("RGB", (64, 32), (255, 255, 255))
    (run,) = kind_of("mlp").inputs(form, plan, white)
    lines = run["patches"][0].reshape(4, 4, 3, PATCH, PATCH)
    assert np.abs(lines[[0, 3]]).max() < 0.2 and np.abs(lines[0, :, :, 0]).max() < 1 / 255
    np.testing.assert_allclose(lines[1, :, 0, 3:], 0.75, atol=1e-6)


def test_pixels_that_fill_no_patch_are_left_out() -> None:
    form = ImageForm(projector="gemma3", patch_size=PATCH, merge=1, image_size=SIZE + 5)
    plan = kind_of("gemma3").plan(form, 50, 50)
    (run,) = kind_of("gemma3").inputs(form, plan, image_of(50, 50))
    assert run["patches"].shape[1] == plan.vectors[0].length == 16
