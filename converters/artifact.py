"""The artifact: what a converter leaves on disk and a backend loads. Structs and paths only.

`<HEARTH_ARTIFACTS>/<source id>/<variant>/` holds `artifact.json` (an `Artifact`), `tokenizer.json`
and either `model.onnx` + `weights.bin` or `config.json` + `model.safetensors`. It is staged beside,
fsynced, renamed, and never changed afterwards. Standard library and msgspec only: the daemon and
the backends read this module.
"""

from __future__ import annotations

import hashlib
import math
import pathlib
from typing import Literal, Protocol, TypeVar

import msgspec

# What engines can read. Goes up when an older engine would misread a newer artifact.
ARTIFACT_FORMAT = 1
READABLE_FORMATS = frozenset({1})
CONVERTER_VERSION = 1
ARTIFACT_FILE = "artifact.json"
TOKENIZER_FILE = "tokenizer.json"
GRAPH_FILE = "model.onnx"
WEIGHTS_FILE = "weights.bin"
MLX_CONFIG_FILE = "config.json"
MLX_WEIGHTS_FILE = "model.safetensors"
ADAPTER_FILE = "adapter.json"
ADAPTER_WEIGHTS_FILE = "adapter.bin"
MLX_ADAPTER_FILE = "adapter.safetensors"
# File types that a quantised GGUF can be asked for.
QUANTISED_TYPES = (
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_S", "Q4_K_M", "Q5_K_S",
    "Q5_K_M", "Q6_K",
)  # fmt: skip

_ON = "-on-"
# What a GGUF made of other files is called in the folder it is made in, and what it says about them.
MADE_GGUF = "model.gguf"
MADE_NOTES = "notes.json"

# mlx-lm's model modules that have been looked at: importing one runs nothing but definitions.
_MLX_MODULES = (
    "afmoe", "apertus", "baichuan_m1", "bailing_moe", "bitnet", "cohere", "cohere2", "deepseek",
    "deepseek_v2", "deepseek_v3", "dots1", "ernie4_5", "ernie4_5_moe", "exaone", "exaone4",
    "falcon_h1", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma4", "gemma4_text",
    "glm", "glm4", "glm4_moe", "glm4_moe_lite", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_oss",
    "granite", "granitemoe", "granitemoehybrid", "helium", "hunyuan", "hunyuan_v1_dense",
    "internlm2", "internlm3", "jamba", "kimi_linear", "lfm2", "lfm2_moe", "llama", "mamba",
    "mamba2", "minicpm", "minicpm3", "minimax", "ministral3", "mistral3", "mixtral", "nemotron",
    "nemotron_h", "olmo2", "olmo3", "olmoe", "phi", "phi3", "phimoe", "plamo", "qwen", "qwen2",
    "qwen2_moe", "qwen3", "qwen3_5", "qwen3_5_moe", "qwen3_moe", "qwen3_next", "rwkv7",
    "seed_oss", "smollm3", "stablelm", "starcoder2", "step3p5",
)  # fmt: skip
# By what configs call them; some have another name there.
MLX_MODEL_TYPES = {name: name for name in _MLX_MODULES} | {
    "mistral": "llama",
    "falcon_mamba": "mamba",
    "kimi_k2": "deepseek_v3",
    "minimax_m2": "minimax",
    "iquestcoder": "llama",
    "xverse": "llama",
}

Exactness = Literal["exact", "scale-rounded", "re-encoded"]
TARGETS = ("onnx-cpu", "onnx-cuda", "mlx")


class TensorRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one source tensor. Errors are absolute, against fp32 dequantisation."""

    name: str
    source_type: str
    shape: tuple[int, ...]
    exactness: Exactness
    form: str
    max_error: float = 0.0
    rms_error: float = 0.0


class RopeTable(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """cos/sin at position p: cos(p * inverse_frequencies[i]) * magnitude, one column per pair.

    `long_*` replace them for a worker whose context is longer than `original_context_length`
    (longrope); the class is part of the worker's identity. `sections`: how many pairs turn with an
    image's time, row and column; in blocks, or `is_interleaved` t r c t r c …, the rest being time's.
    """

    inverse_frequencies: tuple[float, ...]
    magnitude: float = 1.0
    long_inverse_frequencies: tuple[float, ...] = ()
    long_magnitude: float = 1.0
    original_context_length: int = 0
    sections: tuple[int, int, int] | None = None
    is_interleaved: bool = False

    def is_long(self, context_length: int) -> bool:
        """Whether a worker of this context length must use the long factors."""
        has_long = bool(self.long_inverse_frequencies)
        return has_long and context_length > self.original_context_length


class CodedTable(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A matrix in `weights.bin`, [rows, columns], for looking rows up outside the graph.

    `bits` 4 or 8: unsigned codes, low bits first, [rows, columns*bits/8] at `codes_offset`; fp32
    scales [rows, columns/block] at `scales_offset`; value = scale * (code - 2**(bits-1)), or, with a
    correction C fp32 [columns/block, rows] at `correction_offset` (>= 0), that plus C: in this order
    bit-equal to ggml's fp32 values, every step but the last being exact. `bits` 32: plain fp32 at `codes_offset`; 16: fp16.
    `number_bits` 16: scales and correction are fp16.
    """

    rows: int
    columns: int
    bits: int
    codes_offset: int
    block: int = 0
    scales_offset: int = -1
    correction_offset: int = -1
    number_bits: int = 32


class RowState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An input `past` and an output `present`, fp32 [B, *shape], that a row carries from run to run.

    Zeros where a row begins. It holds the whole of what the row has read: unlike keys and values it
    can be neither shortened nor cut, so a prefix is reused whole or not at all.
    """

    past: str
    present: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Of one row."""
        return 4 * math.prod(self.shape)


class OnnxGraph(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the ONNX engine must know beside the graph.

    A decoder's inputs and outputs: `backends/onnx/binding.py`, and a `RowState` for each of `states`.
    A model with `Artifact.pooling`, or without causality, is an encoder instead: no cache, one run
    for one batch. In: `inputs_embeds` f32 [B, S, E], looked up as for a decoder, texts padded on the
    right with anything finite; `lengths` i32 [B], ids of each text, 1 or more; `cos`/`sin` (and
    `cos_local`/`sin_local`) f32 [P, pairs], P >= S, for each table in `Artifact.rope`. Out: `pooled`
    f32 [B, vector_size], not normalised; for pooling "rank" the scores of the labels, the first one
    being the relevance. Without pooling: `hidden` f32 [B, S, E], where padding means nothing.
    Rows of `per_block`, times `per_block_scale`, stand behind those of `embedding` in `inputs_embeds`.
    So do E numbers for each of the first `deepstack` blocks, which are added to the stream after it:
    zeros for text.
    """

    embedding: CodedTable
    top_k: int = 64
    embedding_scale: float = 1.0
    key_value_dtype: str = "float32"
    states: tuple[RowState, ...] = ()
    vector_size: int = 0
    per_block: CodedTable | None = None
    per_block_scale: float = 1.0
    deepstack: int = 0

    @property
    def input_width(self) -> int:
        """Numbers of `inputs_embeds` for one id."""
        own = self.per_block.columns if self.per_block else 0
        return self.embedding.columns * (1 + self.deepstack) + own


class SpecialTokens(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Ids; -1 where the model has none. `end_ids` end a generation."""

    bos_id: int = -1
    eos_id: int = -1
    unknown_id: int = -1
    padding_id: int = -1
    end_ids: tuple[int, ...] = ()
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False


class ForeignGraph(msgspec.Struct, frozen=True, kw_only=True):
    """Another program's encoder. In: `inputs`, each i64 [texts, ids], of `input_ids`, `attention_mask`
    (1 where there is text) and `token_type_ids` (zeros). Out: `output` f32 [texts, ids, width], which
    means nothing where there is no text; pooling is the engine's.
    """

    inputs: tuple[str, ...]
    output: str


class Artifact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`artifact.json`. `source` is the source id (64 hex digits); sizes are bytes.

    `heads`, `kv_heads` and `head_size` are per transformer block where the list has more than one
    entry, else they hold for all; a block of 0 kv heads has no keys and values. `kv_bytes` is
    `kv_bytes_per_token` by device, where one computes in other numbers than the target's own; `row_bytes`
    are a row's states, which have one size however long it is.
    `rank_template` is the text of a pair, with `{query}` and `{document}`, of a model that ranks in a form
    of its own; it `has_probabilities` where its scores are some.
    """

    format: int
    converter: int
    source: str
    variant: str
    architecture: str
    model_name: str = ""
    block_count: int
    embedding_length: int
    heads: int
    kv_heads: tuple[int, ...]
    head_size: int
    value_size: int = 0
    vocabulary: int
    context_length: int
    kv_bytes_per_token: int
    causal: bool = True
    pooling: Literal["", "mean", "cls", "last", "rank"] = ""
    rank_template: str = ""
    has_probabilities: bool = False
    rope: dict[str, RopeTable] = {}
    special: SpecialTokens = SpecialTokens()
    tokenizer_kind: str = ""
    pre_tokenizer: str = ""
    chat_template: str = ""
    file_bytes: int = 0
    resident_bytes: dict[str, int] = {}
    kv_bytes: dict[str, int] = {}
    row_bytes: int = 0
    tensors: tuple[TensorRecord, ...] = ()
    skipped_tensors: tuple[str, ...] = ()
    precise: bool = False
    onnx: OnnxGraph | None = None
    foreign: ForeignGraph | None = None

    def kv_bytes_on(self, device: str) -> int:
        """Of one id's keys and values; artifacts of before `kv_bytes` say one figure for all."""
        return self.kv_bytes.get(device, self.kv_bytes_per_token)

    @property
    def states_bytes(self) -> int:
        """`row_bytes`, also of artifacts of before it: of the states one run reads and one writes."""
        states = self.onnx.states if self.onnx else ()
        return self.row_bytes or 2 * sum(state.nbytes for state in states)

    def exactness_counts(self) -> dict[str, int]:
        """How many tensors are of each class, for `show`."""
        counts = {"exact": 0, "scale-rounded": 0, "re-encoded": 0}
        for record in self.tensors:
            counts[record.exactness] += 1
        return counts


class StoredArray(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An fp32 or fp16 array in `adapter.bin`: C order, little-endian, `offset` in bytes."""

    shape: tuple[int, ...]
    offset: int
    is_half: bool = False


class AdapterArtifact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`adapter.json`: a low-rank adapter for one variant of one base, beside whose weights it stands.

    For ONNX Runtime the folder holds `model.onnx`, the base's graph with the products added, which
    reads the base's own `weights.bin`, and `adapter.bin` with `arrays` by the graph's names. For MLX
    `adapter.safetensors` holds `<module>.lora_a` [rank, columns] and `<module>.lora_b` [rows, rank],
    scaled, for a module's x to become module(x) + (x aᵀ) bᵀ. `base` and `source` are source ids;
    `base_structure` is what `structure_of` gives of the base's artifact that it was made for.
    `max_error` and `rms_error`: what fp16 took of the arrays' numbers, absolute.
    """

    format: int
    converter: int
    source: str
    base: str
    variant: str
    base_structure: str
    rank: int
    targets: tuple[str, ...]
    file_bytes: int = 0
    resident_bytes: int = 0
    arrays: dict[str, StoredArray] = {}
    max_error: float = 0.0
    rms_error: float = 0.0


class ArtifactError(Exception):
    """The folder holds no artifact that this build can read; the message says why."""


class Described(Protocol):
    """What every description says first: `READABLE_FORMATS` are those that engines can read."""

    @property
    def format(self) -> int: ...


_Described = TypeVar("_Described", bound=Described)


def variant_folder(target: str, *, precise: bool = False) -> str:
    """Folder name below the source id: target, then the format it is written in."""
    return f"{target}{'-precise' if precise else ''}-f{ARTIFACT_FORMAT}"


def adapter_folder(variant: str, base: str) -> str:
    """Folder name below the adapter's source id: the base's variant and source id."""
    return f"{variant}{_ON}{base}"


def adapted_base(folder_name: str) -> str:
    """The base's source id in a name of `adapter_folder`, "" in any other."""
    return folder_name.partition(_ON)[2]


def read_artifact(folder: pathlib.Path) -> Artifact:
    """Decodes `artifact.json`. Raises ArtifactError."""
    return read_described(folder, ARTIFACT_FILE, Artifact)


def read_adapter(folder: pathlib.Path, base: pathlib.Path) -> AdapterArtifact:
    """Decodes `adapter.json`, of an adapter for the artifact in `base`. Raises ArtifactError.

    An artifact that was made anew by another version of the converter may be another one.
    """
    adapter = read_described(folder, ADAPTER_FILE, AdapterArtifact)
    if adapter.base_structure != structure_of(base):
        raise ArtifactError(f"{folder.name}: made for another artifact of its base")
    return adapter


def structure_of(folder: pathlib.Path) -> str:
    """SHA-256, hex, of what says where an artifact's weights are. Raises ArtifactError."""
    path = folder / GRAPH_FILE
    try:
        data = (path if path.exists() else folder / MLX_CONFIG_FILE).read_bytes()
    except OSError as error:
        raise ArtifactError(f"{folder.name}: no readable artifact ({error})") from error
    return hashlib.sha256(data).hexdigest()


def read_described(
    folder: pathlib.Path, name: str, kind: type[_Described], what: str = "artifact"
) -> _Described:
    """The description `name` of an artifact, in a format that this build knows. Raises ArtifactError."""
    try:
        artifact = msgspec.json.decode((folder / name).read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError) as error:
        raise ArtifactError(f"{folder.name}: no readable {what} ({error})") from error
    if artifact.format not in READABLE_FORMATS:
        raise ArtifactError(f"{folder.name}: artifact format {artifact.format} is unknown here")
    return artifact
