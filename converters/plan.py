"""From a header to a plan: what becomes of every tensor, and how large the artifact will be.

Pure: reads no tensor data, imports no runtime and no onnx. A tensor without a place is a refusal,
never a silent loss; so are unknown architectures, block types and features. The writers decide
nothing that is not in the plan.
"""

from __future__ import annotations

import math
import re

import msgspec

from converters.architectures.library import library_form
from converters.architectures.mixers import Recurrent, states_of
from converters.architectures.model import ModelShape
from converters.architectures.registry import describe
from converters.artifact import variant_folder
from converters.errors import ConversionError, Unsupported
from converters.foreign_graph import is_foreign, read_facts
from converters.gguf import GgufFile, TensorInfo, integer_value
from converters.inspection import MemoryEstimate
from converters.targets.mlx.layout import Layout as MlxLayout
from converters.targets.mlx.models.registry import family_of
from converters.targets.mlx.native import is_native, plan_native
from converters.targets.mlx.placement import plan_layout as plan_mlx_layout
from converters.targets.onnx.layout import LOOKED_UP
from converters.targets.onnx.layout import Layout as OnnxLayout
from converters.targets.onnx.placement import plan_layout as plan_onnx_layout
from converters.tokenizer import tokenizer_refusal

# Tensors that no text decoder reads: encoders and projectors stored along, extra prediction heads (and
# whole blocks for them, which the file counts), and rotation tables of old files that are recomputed.
_SKIPPED = re.compile(
    r"^(v|a|mm|mtp|nextn)\.|^blk\.\d+\.(nextn\.|attn_rot_embd\.weight$|attn\.inv_freq$)"
)
_BLOCK = re.compile(r"^blk\.(\d{1,9})\.")
# What a graph's proto takes per array and per file, for the estimate; measured, rounded up.
_GRAPH_BYTES_PER_PIECE = 400
_GRAPH_BYTES = 64 << 10
# The tokenizer's JSON against the header it is made from; it repeats merges and escapes text.
_TOKENIZER_RATIO = 2
# MLAS keeps a packed copy: codes, an fp32 scale and an fp32 block sum per block.
_PACKED_BITS_PER_BLOCK = 64


# Target → the name that an inspection gives its runtime.
RUNTIMES = {"onnx-cpu": "onnx", "onnx-cuda": "onnx-cuda", "mlx": "mlx"}


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One conversion. `skipped` are the tensors left out by rule; sizes in bytes are estimates
    except for `layout.weights_bytes`, which is exact.
    """

    target: str
    variant: str
    is_precise: bool
    model: ModelShape
    layout: OnnxLayout | MlxLayout
    skipped: tuple[str, ...]
    artifact_bytes: int
    resident_bytes: int

    @property
    def row_bytes(self) -> int:
        """A row's states: for ONNX those that a run reads and those that it writes."""
        mixers = [block.mixer for block in self.model.blocks]
        shapes = [s for m in mixers if isinstance(m, Recurrent) for s in states_of(m).values()]
        return 4 * sum(map(math.prod, shapes)) * (1 if isinstance(self.layout, MlxLayout) else 2)

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of all blocks for one id, in the target's own numbers."""
        if isinstance(self.layout, MlxLayout):
            return self.layout.cached_numbers * (4 if self.layout.number == "F32" else 2)
        if self.model.encoder:
            return 0
        mixers = [block.mixer for block in self.model.blocks]
        numbers = sum(2 * each.kv_heads * each.head_size for each in mixers)
        return numbers * (2 if self.layout.number == "float16" else 4)

    @property
    def context_length(self) -> int:
        """The model's own, or less where the target cannot follow it that far."""
        if isinstance(self.layout, MlxLayout):
            return self.layout.context_length
        return self.model.context_length


def plan(file: GgufFile, target: str, precise: bool = False) -> Plan:
    """Raises Unsupported for what this build cannot convert, MalformedFile for what is broken."""
    if target not in RUNTIMES:
        raise Unsupported(f"the target {target} is not supported yet")
    file = library_form(file)
    model = describe(file)
    _check_head_sizes(model)
    skipped = _left_out(file, model)
    tensors = {tensor.name: tensor for tensor in file.tensors}
    if target == "mlx":
        layout = plan_mlx_layout(model, tensors, family_of(model))
        files_bytes = resident_bytes = layout.weights_bytes
    else:
        number = "float32"
        if target == "onnx-cuda":
            if precise:
                raise Unsupported("precise artifacts are for the CPU: CUDA computes in fp16")
            number = "float16"
        layout = plan_onnx_layout(model, tensors, precise=precise, number=number)
        files_bytes, resident_bytes = _onnx_bytes(layout), _resident_bytes(layout)
    return Plan(
        target=target,
        variant=variant_folder(target, precise=precise),
        is_precise=precise,
        model=model,
        layout=layout,
        skipped=skipped,
        artifact_bytes=files_bytes + _TOKENIZER_RATIO * file.data_offset,
        resident_bytes=resident_bytes,
    )


class Assessment(msgspec.Struct, frozen=True):
    """What an inspection says of converting one file, by the names in `RUNTIMES`.

    `estimates` are bytes of the artifact.
    """

    refusals: dict[str, str] = {}
    estimates: dict[str, int] = {}
    memory: dict[str, MemoryEstimate] = {}


def assess(file: GgufFile) -> Assessment:
    """Plans the file for every runtime; what cannot be planned is a refusal."""
    if is_native(file):
        return _assess_native(file)
    found = Assessment({}, {}, {})
    for target, runtime in RUNTIMES.items():
        try:
            if reason := tokenizer_refusal(library_form(file).metadata):
                raise Unsupported(reason)
            estimate, memory = _estimates(file, target)
        except ConversionError as error:
            found.refusals[runtime] = str(error)
        else:
            found.estimates[runtime] = estimate
            found.memory[runtime] = memory
    return found


def _assess_native(file: GgufFile) -> Assessment:
    found = Assessment({}, {}, {})
    for target, runtime in RUNTIMES.items():
        try:
            if reason := tokenizer_refusal(file.metadata):
                raise Unsupported(reason)
            planned = plan_native(file, target)
        except ConversionError as error:
            found.refusals[runtime] = str(error)
        else:
            found.estimates[runtime] = planned.weights_bytes + _TOKENIZER_RATIO * file.data_offset
            found.memory[runtime] = MemoryEstimate(
                resident_bytes=planned.weights_bytes,
                kv_bytes_per_token=planned.kv_bytes_per_token,
                context_length=integer_value(file.metadata, "mlx.context_length", 0),
            )
    return found


def _estimates(file: GgufFile, target: str) -> tuple[int, MemoryEstimate]:
    """Bytes of the artifact, and what it takes once loaded."""
    if is_foreign(file):
        facts = read_facts(file, target)
        memory = MemoryEstimate(
            resident_bytes=facts.tensor.nbytes, context_length=facts.context_length
        )
        return facts.artifact_bytes, memory
    planned = plan(file, target)
    return planned.artifact_bytes, _memory_estimate(planned)


def _memory_estimate(planned: Plan) -> MemoryEstimate:
    recipes = planned.model.rope.values()
    originals = [each.original_context_length for each in recipes if each.long_factors]
    return MemoryEstimate(
        resident_bytes=planned.resident_bytes,
        kv_bytes_per_token=planned.kv_bytes_per_token,
        row_bytes=planned.row_bytes,
        context_length=planned.context_length,
        original_context_length=max(originals, default=0),
    )


def require_convertible(file: GgufFile) -> None:
    """Raises Unsupported, with every reason, where no target can take the file."""
    found = assess(file)
    if not found.estimates:
        raise Unsupported("; ".join(dict.fromkeys(found.refusals.values())))


def _check_head_sizes(model: ModelShape) -> None:
    """The artifact states one head size for all blocks."""
    mixers = [block.mixer for block in model.blocks]
    sizes = {each.head_size for each in mixers if each.kv_heads}
    if len(sizes) > 1:
        raise Unsupported(f"{model.architecture}: heads of {sorted(sizes)} in one model")


def _left_out(file: GgufFile, model: ModelShape) -> tuple[str, ...]:
    """Names of the tensors skipped by rule. Raises Unsupported for one that has no place at all."""
    used, blocks = model.tensor_names(), len(model.blocks)
    ahead = integer_value(file.metadata, f"{file.architecture}.nextn_predict_layers", 0)
    left = [tensor for tensor in file.tensors if tensor.name not in used]
    for tensor in left:
        block = _BLOCK.match(tensor.name)
        predicts_ahead = block is not None and blocks <= int(block[1]) < blocks + ahead
        if not (predicts_ahead or _SKIPPED.match(tensor.name)):
            raise Unsupported(_no_place(tensor, model))
    return tuple(tensor.name for tensor in left)


def _no_place(tensor: TensorInfo, model: ModelShape) -> str:
    return f"tensor {tensor.name!r} has no place in {model.architecture} as this build knows it"


def _onnx_bytes(layout: OnnxLayout) -> int:
    pieces = sum(1 for _ in layout.pieces())
    return layout.weights_bytes + _GRAPH_BYTES + pieces * _GRAPH_BYTES_PER_PIECE


def _resident_bytes(layout: OnnxLayout) -> int:
    """What a CPU session keeps on the heap; the raw weights stay mapped and can be dropped.

    On a device everything but the table for the look-up lies as it is in the file.
    """
    if layout.number == "float16":
        tables = [layout.matrices[name] for name in LOOKED_UP if name in layout.matrices]
        pieces = (piece for table in tables for piece in table.pieces.values())
        return layout.weights_bytes - sum(piece.nbytes for piece in pieces)
    bits = 0
    for matrix in layout.matrices.values():
        if matrix.name in LOOKED_UP:
            continue
        weights, form = matrix.rows * matrix.columns, matrix.form
        blocks = weights // form.block if form.block else 0
        halves = 2 if form.kind == "split" else 1
        bits += weights * form.bits + blocks * _PACKED_BITS_PER_BLOCK * halves
        bits += blocks * 32 if form.is_corrected else 0
    stacks = (piece for stack in layout.stacks.values() for piece in stack.pieces.values())
    return bits // 8 + sum(piece.nbytes for piece in stacks)
