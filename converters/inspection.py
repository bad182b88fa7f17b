"""What a look at a GGUF's header tells, once per blob. Structs only: the daemon reads this module.

The inspector (a confined child) writes `<HEARTH_HOME>/inspections/<hex digest>.json`, and the long
metadata arrays (vocabulary, merges, scores) beside it as `<hex digest>.arrays.json`, which only
`show --verbose` reads.
"""

from __future__ import annotations

import pathlib

import msgspec

INSPECTION_VERSION = 4
# Arrays with more entries than this are kept in the .arrays.json file and are null in `metadata`.
INLINE_ARRAY_ENTRIES = 0

Scalar = str | int | float | bool


class TensorSummary(msgspec.Struct, frozen=True, array_like=True):
    """`shape` is in GGUF's own order (fastest first), as `show` prints it."""

    name: str
    type: str
    shape: tuple[int, ...]


class MemoryEstimate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one model takes once loaded, beside the bytes of its artifact.

    `resident_bytes` is what the runtime keeps of the weights, `row_bytes` a row's states; `original_context_length` > 0 only
    for longrope.
    """

    resident_bytes: int = 0
    kv_bytes_per_token: int = 0
    row_bytes: int = 0
    context_length: int = 0
    original_context_length: int = 0


class Inspection(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`metadata` holds every key of the header; arrays are None here (see the module's docstring).

    `refusals` says per target ("onnx" for its CPU form, "onnx-cuda", "mlx") why this build cannot
    convert the file; a target that is absent can be converted. `estimates` gives artifact bytes on
    disk per target, `memory` what it takes to load it. `kind` is
    "model", "projector", "adapter" or "vocabulary". `header_bytes` is where the tensor data begins,
    0 in inspections of older builds. The fields `vision_*` say the same of the vision tower in the file,
    a projector's or a model's own; without one they are empty. `projector_type` is the kind of it;
    `vision_memory` the bytes that a loaded tower takes while it runs.
    """

    version: int = INSPECTION_VERSION
    digest: str
    size: int
    header_bytes: int = 0
    kind: str = "model"
    architecture: str = ""
    name: str = ""
    file_type: str = "unknown"
    parameter_count: int = 0
    context_length: int = 0
    embedding_length: int = 0
    block_count: int = 0
    pooling_type: int | None = None
    has_vision: bool = False
    has_audio: bool = False
    chat_template: str = ""
    metadata: dict[str, Scalar | None] = {}
    tensors: tuple[TensorSummary, ...] = ()
    refusals: dict[str, str] = {}
    estimates: dict[str, int] = {}
    memory: dict[str, MemoryEstimate] = {}
    projector_type: str = ""
    vision_refusals: dict[str, str] = {}
    vision_estimates: dict[str, int] = {}
    vision_memory: dict[str, int] = {}
    warnings: tuple[str, ...] = ()


def inspection_path(home: pathlib.Path, hex_digest: str) -> pathlib.Path:
    return home / "inspections" / f"{hex_digest}.json"


def arrays_path(home: pathlib.Path, hex_digest: str) -> pathlib.Path:
    return home / "inspections" / f"{hex_digest}.arrays.json"


def read_inspection(path: pathlib.Path) -> Inspection | None:
    """None when there is none, or one of another version: then the blob is inspected again."""
    try:
        inspection = msgspec.json.decode(path.read_bytes(), type=Inspection)
    except (OSError, msgspec.MsgspecError):
        return None
    return inspection if inspection.version == INSPECTION_VERSION else None
