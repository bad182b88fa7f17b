"""From a header to a plan: what becomes of every tensor, and how large the artifact will be.

Pure: reads no tensor data, imports no runtime and no onnx. A tensor without a place is a refusal,
never a silent loss; so are unknown architectures, block types and features. The writers decide
nothing that is not in the plan.
"""

from __future__ import annotations

import re

import msgspec

from converters.architectures.model import ModelShape
from converters.architectures.registry import describe
from converters.artifact import variant_folder
from converters.errors import ConversionError, Unsupported
from converters.gguf import GgufFile, TensorInfo
from converters.targets.onnx.layout import Layout, plan_layout
from converters.tokenizer import tokenizer_refusal

# Tensors that no text decoder reads: encoders and projectors stored along, extra prediction heads,
# and rotation tables of old files that are recomputed.
_SKIPPED = re.compile(
    r"^(v|a|mm|mtp|nextn)\.|^blk\.\d+\.(nextn\.|attn_rot_embd\.weight$|attn\.inv_freq$)"
)
# What a graph's proto takes per array and per file, for the estimate; measured, rounded up.
_GRAPH_BYTES_PER_PIECE = 400
_GRAPH_BYTES = 64 << 10
# The tokenizer's JSON against the header it is made from; it repeats merges and escapes text.
_TOKENIZER_RATIO = 2
# MLAS keeps a packed copy: codes, an fp32 scale and an fp32 block sum per block.
_PACKED_BITS_PER_BLOCK = 64


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One conversion. `skipped` are the tensors left out by rule; sizes in bytes are estimates
    except for `layout.weights_bytes`, which is exact.
    """

    target: str
    variant: str
    is_precise: bool
    model: ModelShape
    layout: Layout
    skipped: tuple[str, ...]
    artifact_bytes: int
    resident_bytes: int

    @property
    def kv_bytes_per_token(self) -> int:
        """fp32 keys and values of all blocks for one id."""
        attentions = [block.attention for block in self.model.blocks]
        return sum(2 * 4 * each.kv_heads * each.head_size for each in attentions)


def plan(file: GgufFile, target: str, precise: bool = False) -> Plan:
    """Raises Unsupported for what this build cannot convert, MalformedFile for what is broken."""
    if target != "onnx-cpu":
        raise Unsupported(f"the target {target} is not supported yet")
    model = describe(file)
    _check_head_sizes(model)
    skipped = _left_out(file, model)
    tensors = {tensor.name: tensor for tensor in file.tensors}
    layout = plan_layout(model, tensors, precise=precise)
    return Plan(
        target=target,
        variant=variant_folder(target, precise=precise),
        is_precise=precise,
        model=model,
        layout=layout,
        skipped=skipped,
        artifact_bytes=_artifact_bytes(file, layout),
        resident_bytes=_resident_bytes(layout),
    )


def assess(file: GgufFile) -> tuple[dict[str, str], dict[str, int]]:
    """(refusals, estimated artifact bytes), both by runtime: "onnx", "mlx"."""
    refusals, estimates = {"mlx": "the target mlx is not supported yet"}, {}
    try:
        if reason := tokenizer_refusal(file.metadata):
            raise Unsupported(reason)
        estimates["onnx"] = plan(file, "onnx-cpu").artifact_bytes
    except ConversionError as error:
        refusals["onnx"] = str(error)
    return refusals, estimates


def _check_head_sizes(model: ModelShape) -> None:
    """The artifact states one head size for all blocks."""
    sizes = {block.attention.head_size for block in model.blocks}
    if len(sizes) > 1:
        raise Unsupported(f"{model.architecture}: heads of {sorted(sizes)} in one model")


def _left_out(file: GgufFile, model: ModelShape) -> tuple[str, ...]:
    """Names of the tensors skipped by rule. Raises Unsupported for one that has no place at all."""
    used = model.tensor_names()
    left = [tensor for tensor in file.tensors if tensor.name not in used]
    for tensor in left:
        if not _SKIPPED.match(tensor.name):
            raise Unsupported(_no_place(tensor, model))
    return tuple(tensor.name for tensor in left)


def _no_place(tensor: TensorInfo, model: ModelShape) -> str:
    return f"tensor {tensor.name!r} has no place in {model.architecture} as this build knows it"


def _artifact_bytes(file: GgufFile, layout: Layout) -> int:
    pieces = sum(1 for _ in layout.pieces())
    graph = _GRAPH_BYTES + pieces * _GRAPH_BYTES_PER_PIECE
    return layout.weights_bytes + graph + _TOKENIZER_RATIO * file.data_offset


def _resident_bytes(layout: Layout) -> int:
    """What a CPU session keeps on the heap; the raw weights stay mapped and can be dropped."""
    bits = 0
    for matrix in layout.matrices.values():
        if matrix.name == "embedding":
            continue
        weights, form = matrix.rows * matrix.columns, matrix.form
        blocks = weights // form.block if form.block else 0
        halves = 2 if form.kind == "split" else 1
        bits += weights * form.bits + blocks * _PACKED_BITS_PER_BLOCK * halves
        bits += blocks * 32 if form.is_corrected else 0
    return bits // 8
