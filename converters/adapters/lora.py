"""A LoRA adapter's header: the matrices it belongs to and what it adds to their products.

y = W x + scale · B (A x) with A [rank, columns] and B [rows, rank], stored as `<weight>.lora_a` and
`<weight>.lora_b`; scale = alpha / rank, 1 where alpha is 0. Reads no tensor data.
Source: llama.cpp, `llama_adapter_lora_init` and `llama_adapter_lora_weight::get_scale`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from converters.architectures.experts import Experts
from converters.architectures.mixers import Attention, LatentAttention
from converters.architectures.model import ModelShape
from converters.architectures.parts import Linear
from converters.blocks import BLOCK_TYPES
from converters.errors import MalformedFile, Unsupported
from converters.gguf import GgufFile, TensorInfo, float_value, text_value

_A, _B = ".lora_a", ".lora_b"
# Far above any adapter that is smaller than what it adapts.
MAX_RANK = 1 << 14


class AdapterMismatch(MalformedFile):
    """The adapter was made for another model than this base."""


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """What is added to the product of the tensor `target`."""

    target: str
    a: TensorInfo
    b: TensorInfo
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[-2]


class Lora(msgspec.Struct, frozen=True, kw_only=True):
    architecture: str
    pairs: tuple[Pair, ...]

    @property
    def rank(self) -> int:
        """The largest of the pairs'."""
        return max(pair.rank for pair in self.pairs)


def read_lora(file: GgufFile) -> Lora:
    """Raises Unsupported for another kind of adapter, MalformedFile for what does not add up."""
    metadata = file.metadata
    if text_value(metadata, "general.type") != "adapter":
        raise MalformedFile("general.type is not 'adapter'")
    kind = text_value(metadata, "adapter.type")
    if kind != "lora":
        raise Unsupported(f"adapters of the type {kind[:80]!r} are not supported, only 'lora'")
    if "adapter.alora.invocation_tokens" in metadata:
        raise Unsupported("activated LoRA (adapter.alora.invocation_tokens) is not supported")
    alpha = float_value(metadata, "adapter.lora.alpha", 0.0)
    if not math.isfinite(alpha):
        raise MalformedFile("adapter.lora.alpha is not a finite number")
    pairs = tuple(_pairs({tensor.name: tensor for tensor in file.tensors}, alpha))
    if not pairs:
        raise MalformedFile("the adapter has no tensors")
    return Lora(architecture=file.architecture, pairs=pairs)


def _pairs(tensors: dict[str, TensorInfo], alpha: float) -> Iterator[Pair]:
    for name in tensors:
        target, ending = name[: -len(_A)], name[-len(_A) :]
        if ending not in (_A, _B):
            raise Unsupported(f"adapter tensor {name!r} is neither {_A} nor {_B}")
        if f"{target}{_A}" not in tensors or f"{target}{_B}" not in tensors:
            raise MalformedFile(f"adapter tensor {name!r} has no counterpart")
        if ending == _A:
            yield _pair(target, tensors[name], tensors[f"{target}{_B}"], alpha)


def _pair(target: str, a: TensorInfo, b: TensorInfo, alpha: float) -> Pair:
    for tensor in (a, b):
        if tensor.type_name not in BLOCK_TYPES:
            raise Unsupported(f"adapter tensor {tensor.name!r} has the type {tensor.type_name}")
        if len(tensor.shape) < 2:
            raise MalformedFile(f"adapter tensor {tensor.name!r} is no matrix")
    rank = a.shape[-2]
    if not rank == b.shape[-1] <= MAX_RANK:
        raise MalformedFile(
            f"adapter tensors {a.name!r} {list(a.shape)} and {b.name!r} {list(b.shape)}"
            " are not of one rank"
        )
    return Pair(target=target, a=a, b=b, scale=alpha / rank if alpha else 1.0)


def of_use(lora: Lora, model: ModelShape) -> Lora:
    """Without what is for matrices that no block reads: trainers adapt them with all the others."""
    mixers = [block.mixer for block in model.blocks]
    readings = [each.reading for each in mixers if isinstance(each, Attention) and each.reading]
    unread = {name for reading in readings for name in reading.tensor_names()}
    pairs = tuple(pair for pair in lora.pairs if pair.target not in unread)
    if not pairs:
        raise Unsupported("the adapter is only for matrices that its base does not read")
    return replace(lora, pairs=pairs)


def check_fit(lora: Lora, model: ModelShape, base_architecture: str) -> None:
    """Raises AdapterMismatch for an adapter of another model, Unsupported for a role not carried."""
    if lora.architecture not in (base_architecture, model.architecture):
        raise AdapterMismatch(
            f"the adapter is for {lora.architecture[:80]!r} models,"
            f" and the base is {model.architecture!r}"
        )
    linears = {linear.weight: linear for linear in _linears(model)}
    for pair in lora.pairs:
        linear = linears.get(pair.target)
        if linear is None:
            raise _no_place(pair, model)
        for tensor, wanted in (
            (pair.a, (pair.rank, linear.columns)),
            (pair.b, (linear.rows, pair.rank)),
        ):
            if tensor.shape != wanted:
                raise AdapterMismatch(
                    f"adapter tensor {tensor.name!r} has shape {list(tensor.shape)},"
                    f" and the base needs {list(wanted)}"
                )


def _linears(model: ModelShape) -> Iterator[Linear]:
    """The matrices that a low-rank product can stand beside."""
    if model.output and not model.is_tied:
        yield model.output
    for block in model.blocks:
        yield from block.linears()
    if model.encoder:
        yield from model.encoder.projections


def _no_place(pair: Pair, model: ModelShape) -> Unsupported | AdapterMismatch:
    role = _role(pair.target, model)
    if role:
        return Unsupported(f"adapters of {role} are not supported yet: {pair.a.name!r}")
    return AdapterMismatch(
        f"adapter tensor {pair.a.name!r} has no place: the base, {model.architecture!r}, has no"
        f" matrix {pair.target!r}"
    )


def _role(target: str, model: ModelShape) -> str:
    """What a tensor of the base is that is no plain matrix; "" for none of its tensors."""
    if target == model.embedding.weight:
        return "the embedding"
    for block in model.blocks:
        network = block.feed_forward
        matrices = network.matrices() if isinstance(network, Experts) else ()
        if target in (matrix.weight for matrix in matrices):
            return "experts"
        if isinstance(block.mixer, LatentAttention) and target in block.mixer.stacks():
            return "latent attention's stacks"
    return "norms, biases and kernels" if target in model.tensor_names() else ""
