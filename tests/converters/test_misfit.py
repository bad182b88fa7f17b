"""Which projectors go with which models."""

from __future__ import annotations

from msgspec.structs import replace

from converters.artifact import Artifact, CodedTable, OnnxGraph, RopeTable
from converters.vision_artifact import ImageForm, VisionArtifact, misfit

TOWER = VisionArtifact(
    format=1,
    converter=1,
    source="0" * 64,
    variant="vision-onnx-cpu-f1",
    form=ImageForm(projector="qwen3vl_merger", patch_size=16, merge=2),
    width=8,
    deepstack=3,
)
TABLE = RopeTable(inverse_frequencies=(1.0, 0.1, 0.01), sections=(1, 1, 1))
GRAPH = OnnxGraph(embedding=CodedTable(rows=9, columns=8, bits=32, codes_offset=0), deepstack=3)
MODEL = Artifact(
    format=1,
    converter=1,
    source="1" * 64,
    variant="onnx-cpu-f1",
    architecture="qwen3vl",
    block_count=4,
    embedding_length=8,
    heads=1,
    kv_heads=(1,),
    head_size=8,
    vocabulary=9,
    context_length=64,
    kv_bytes_per_token=64,
    rope={"global": TABLE},
    onnx=GRAPH,
)


def test_a_projector_and_the_model_that_it_was_made_for():
    assert misfit(TOWER, MODEL) == ""
    assert misfit(TOWER, replace(MODEL, onnx=None)) == ""


def test_a_projector_of_another_model():
    assert "12 numbers" in misfit(replace(TOWER, width=12), MODEL)
    assert "after 0 blocks" in misfit(replace(TOWER, deepstack=0), MODEL)


def test_an_artifact_that_was_made_before_images():
    for rope in ({}, {"global": replace(TABLE, sections=None)}):
        assert "made again" in misfit(TOWER, replace(MODEL, rope=rope))
    assert "made again" in misfit(TOWER, replace(MODEL, onnx=replace(GRAPH, deepstack=0)))


def test_a_model_that_counts_the_positions_of_an_image_like_others():
    plain = replace(TOWER, form=replace(TOWER.form, projector="gemma3"), deepstack=0)
    model = replace(MODEL, rope={}, onnx=replace(GRAPH, deepstack=0))
    assert misfit(plain, model) == ""
