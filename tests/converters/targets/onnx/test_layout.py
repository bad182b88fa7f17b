"""Where things lie in `weights.bin`: alignment, sharing, and which matrices are written as one."""

from __future__ import annotations

import itertools

import pytest

from converters.plan import plan
from converters.targets.onnx.layout import PAGE_BYTES, PAGED_BYTES, Layout
from tests.converters.headers import decoder_shapes, header


def layout_of(*, precise: bool = False, **changes: object) -> Layout:
    layout = plan(header(**changes), "onnx-cpu", precise).layout  # pyright: ignore[reportArgumentType]
    assert isinstance(layout, Layout)
    return layout


def tied_shapes() -> dict[str, tuple[int, ...]]:
    shapes = decoder_shapes()
    del shapes["output.weight"]
    return shapes


@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("type_name", ["F32", "F16", "Q8_0", "Q4_K", "Q6_K"])
def test_pieces_are_aligned_and_do_not_overlap(type_name: str, precise: bool):
    layout = layout_of(type_name=type_name, precise=precise)
    pieces = {piece.offset: piece for piece in layout.pieces() if "zeros" not in piece.name}
    ordered = [pieces[offset] for offset in sorted(pieces)]
    for before, after in itertools.pairwise(ordered):
        assert before.offset + before.nbytes <= after.offset
    for piece in layout.pieces():
        assert piece.offset % (PAGE_BYTES if piece.nbytes >= PAGED_BYTES else 64) == 0
        assert piece.offset + piece.nbytes <= layout.weights_bytes


def test_query_key_and_value_of_one_form_are_one_matrix():
    matrix = layout_of().matrices["blk.0.attn_qkv"]
    assert [source.rows for source in matrix.sources] == [256, 128, 128]
    assert (matrix.rows, matrix.columns) == (512, 256)
    assert matrix.pieces["codes"].shape == (512, 8, 16)
    assert matrix.pieces["correction"].shape == (8, 512)


def test_another_form_or_a_lone_bias_keeps_them_apart():
    other_form = layout_of(types={"blk.0.attn_v.weight": "Q6_K"})
    lone_bias = layout_of(shapes=decoder_shapes() | {"blk.0.attn_q.bias": (256,)})
    for layout in (other_form, lone_bias):
        assert {"blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v"} <= set(layout.matrices)
        assert "blk.1.attn_qkv" in layout.matrices
    assert lone_bias.matrices["blk.0.attn_q"].bias == "blk.0.attn_q.bias"


def test_biases_of_joined_matrices_are_joined():
    biases = {"q": 256, "k": 128, "v": 128}
    shapes = {f"blk.0.attn_{part}.bias": (length,) for part, length in biases.items()}
    layout = layout_of(shapes=decoder_shapes() | shapes)
    joined = layout.vectors[layout.matrices["blk.0.attn_qkv"].bias]
    assert joined.piece.shape == (512,)
    assert [source.tensor.name for source in joined.sources] == list(shapes)


@pytest.mark.parametrize(
    ("type_name", "bits"), [("Q6_K", 8), ("Q4_K", 4), ("F32", 32), ("F16", 32)]
)
def test_a_tied_table_is_the_heads_own_bytes(type_name: str, bits: int):
    layout = layout_of(shapes=tied_shapes(), type_name=type_name)
    head = layout.matrices["output"].pieces
    first = head.get("codes") or head["values"]
    assert layout.embedding.codes_offset == first.offset
    assert layout.embedding.bits == bits
    assert "embedding" not in layout.matrices


def test_a_split_head_has_a_table_beside_it():
    layout = layout_of(shapes=tied_shapes(), type_name="Q8_0", precise=True)
    assert layout.matrices["output"].form.kind == "split"
    assert layout.embedding.codes_offset == layout.matrices["embedding"].pieces["codes"].offset


@pytest.mark.parametrize(
    ("type_name", "bits", "is_corrected"),
    [("Q4_K", 4, True), ("Q6_K", 8, False), ("F16", 16, False), ("BF16", 32, False)],
)
def test_an_untied_table_keeps_its_own_form(type_name: str, bits: int, is_corrected: bool):
    table = layout_of(types={"token_embd.weight": type_name}).embedding
    assert (table.bits, table.correction_offset >= 0) == (bits, is_corrected)
    assert (table.rows, table.columns) == (300, 256)


def test_a_shorter_vocabulary_narrows_table_and_head():
    tokens = [str(index) for index in range(290)]
    shapes = decoder_shapes() | {"output.bias": (300,)}
    layout = layout_of(shapes=shapes, metadata={"tokenizer.ggml.tokens": tokens})
    assert layout.embedding.rows == layout.matrices["output"].rows == 290
    assert layout.vectors["output.bias"].piece.shape == (290,)


def test_precise_splits_only_eight_bits_and_shares_the_zeros():
    layout = layout_of(types={"blk.0.ffn_up.weight": "Q6_K", "output.weight": "Q8_0"}, precise=True)
    assert layout.matrices["blk.0.ffn_down"].form.kind == "codes"
    split = [layout.matrices[name].pieces["zeros"] for name in ("blk.0.ffn_up", "output")]
    assert split[0].offset == split[1].offset
    assert [zeros.shape for zeros in split] == [(512, 8), (300, 4)]
