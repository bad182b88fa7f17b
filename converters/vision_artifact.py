"""The artifact of what makes vectors of images: a vision tower and its projector. Structs and paths only.

`<HEARTH_ARTIFACTS>/<source id>/vision-<target>-f<format>/` holds `vision.json` (a `VisionArtifact`) and
either `model.onnx` + `weights.bin` or `config.json` + `model.safetensors`. The source is a projector file
(`general.architecture` clip), or a model's own file that has the tower inside. Staged, fsynced, renamed
and never changed, as every artifact.

The tower's inputs, made by `backends.vision` and the same for every runtime, each only where
`VisionArtifact.inputs` names it (N tiles or 1, P patches each, p the patch's side):

`patches` f32 [N, P, 3·p·p]: normalised numbers, a patch being [channel, y, x]. Raster order; where
`ImageForm.is_grouped`, the patches of one merged position are neighbours (raster order in it), and the
positions in raster order or, with `segments`, in that of the windows.
`cos`, `sin` f32 [P, head size / 2]: the rotation of each patch, a column per pair.
`segments` i64 [P]: in blocks that look through windows, patches see those of their own segment only. The
patches of a segment stand one behind the other.
`place_ids` i64 [P, 4], `place_weights` f32 [P, 4]: rows of the table of places, and how much of each.

The output `embeddings` f32 [N, L, W]: L positions of each tile, in the order of their patches;
W = `width` · (1 + `deepstack`). Where `has_row_break`, a second output `row_break` f32 [W]: the vector
that stands after each row of positions but the last.
"""

from __future__ import annotations

import pathlib

import msgspec

from converters.artifact import (
    ARTIFACT_FORMAT,
    Artifact,
    TensorRecord,
    read_described,
)

VISION_FILE = "vision.json"
_PREFIX = "vision-"
# Kinds whose models turn the positions of an image by row and column.
SECTIONED = frozenset({"qwen2vl_merger", "qwen2.5vl_merger", "qwen3vl_merger"})


class ImageForm(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an image becomes patches. `projector` is the field's name of the kind: `clip.projector_type`.

    `merge` × `merge` patches become one position. `image_size` is the side of a tile, or 0 where the
    tower takes images of every size between `min_pixels` and `max_pixels` (0: the kind's own bounds).
    Kinds that cut images into tiles make the longer side `longest_edge`, or give `min_tiles` to `max_tiles`.
    `mean` and `std` are of numbers between 0 and 1. `grid_size` is the side of the table of places,
    `window_size` in pixels that of a window, `head_size` that of the rotated heads.
    """

    projector: str
    patch_size: int
    merge: int = 1
    image_size: int = 0
    min_pixels: int = 0
    max_pixels: int = 0
    longest_edge: int = 0
    min_tiles: int = 1
    max_tiles: int = 1
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    is_grouped: bool = False
    grid_size: int = 0
    window_size: int = 0
    head_size: int = 0
    rope_base: float = 10000.0


class VisionArtifact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`vision.json`. `source` is the source id (64 hex digits); sizes are bytes.

    `width` is the embedding length of the model that it was made for. `resident_bytes` by device are
    what the tower keeps while it is loaded, `run_bytes` what a run of the largest image takes beside.
    `is_bidirectional`: positions of one image see each other in the text model.
    """

    format: int
    converter: int
    source: str
    variant: str
    name: str = ""
    form: ImageForm
    width: int
    deepstack: int = 0
    inputs: tuple[str, ...] = ("patches",)
    has_row_break: bool = False
    is_bidirectional: bool = False
    block_count: int = 0
    file_bytes: int = 0
    resident_bytes: dict[str, int] = {}
    run_bytes: int = 0
    tensors: tuple[TensorRecord, ...] = ()
    skipped_tensors: tuple[str, ...] = ()


def misfit(tower: VisionArtifact, model: Artifact) -> str:
    """Why images of the one cannot be put into prompts of the other; "" where they can.

    Artifacts made before images were known say neither sections nor `deepstack`.
    """
    table, again = model.rope.get("global"), "remove its artifact, so that it is made again"
    if tower.width != model.embedding_length:
        return (
            f"the projector makes {tower.width} numbers for a position,"
            f" and the model reads {model.embedding_length}"
        )
    if tower.form.projector in SECTIONED and (table is None or table.sections is None):
        return f"nothing is said of the sections by which the model rotates: {again}"
    if model.onnx and model.onnx.deepstack != tower.deepstack:
        return (
            f"the projector adds to the stream after {tower.deepstack} blocks,"
            f" and the model takes it after {model.onnx.deepstack}: {again}"
        )
    return ""


def vision_folder(target: str) -> str:
    """Folder name below the source id."""
    return f"{_PREFIX}{target}-f{ARTIFACT_FORMAT}"


def is_vision_folder(name: str) -> bool:
    return name.startswith(_PREFIX)


def read_vision(folder: pathlib.Path) -> VisionArtifact:
    """Decodes `vision.json`. Raises ArtifactError."""
    return read_described(folder, VISION_FILE, VisionArtifact, "vision artifact")
