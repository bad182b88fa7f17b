"""A look at the header of a GGUF, once per blob: writes what `converters.inspection` describes.

Reads no tensor data and converts nothing. Both files appear whole or not at all, the long arrays
before the inspection that speaks of them.
"""

from __future__ import annotations

import os
import pathlib
import re
import tempfile
from typing import Any, BinaryIO

import msgspec
import numpy as np

from converters.errors import MalformedFile
from converters.gguf import GgufFile, NumberArray, Value, integer_value, read_header, text_value
from converters.inspection import Inspection, Scalar, TensorSummary

# `general.file_type`: 0 (F32) and no key at all both read as "unknown" on the wire.
FILE_TYPES = {
    1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M",
    18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS",
    24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS",
    31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0",
}  # fmt: skip

_LONG_TEXT = 1 << 18
# Keys of models in MLX's own format (`converters.targets.mlx.native`).
NATIVE_MODEL_TYPE, NATIVE_QUANTIZATION = "mlx.model_type", "mlx.quantization"


def run_inspect(input_path: pathlib.Path, digest: str, output_folder: pathlib.Path) -> None:
    """As `inspect`, by path."""
    with input_path.open("rb") as file:
        inspect(file, digest, output_folder)


def inspect(file: BinaryIO, digest: str, output_folder: pathlib.Path) -> None:
    """Writes `<digest>.arrays.json` and `<digest>.json` into the folder.

    Raises MalformedFile, Unsupported (then nothing is written) and OSError.
    """
    if not re.fullmatch(r"[0-9a-f]{1,128}", digest):
        raise MalformedFile(f"{digest[:80]!r} is not a digest in hexadecimal digits")
    header = read_header(file)
    inspection = describe(header, digest)
    arrays = {key: _plain(value) for key, value in header.metadata.items() if _is_array(value)}
    _write_whole(output_folder / f"{digest}.arrays.json", msgspec.json.encode(arrays))
    _write_whole(output_folder / f"{digest}.json", msgspec.json.encode(inspection))


def describe(header: GgufFile, digest: str) -> Inspection:
    """The inspection of one header. Raises MalformedFile where a key has the wrong type."""
    from converters.plan import Assessment, assess  # here, since the plan knows every architecture
    from converters.vision_plan import assess_vision

    metadata, architecture = header.metadata, header.architecture
    kind = _kind(header)
    assessment = assess(header) if kind == "model" else Assessment()
    vision = assess_vision(header)
    return Inspection(
        digest=digest,
        size=header.size,
        header_bytes=header.data_offset,
        kind=kind,
        architecture=text_value(metadata, NATIVE_MODEL_TYPE, architecture),
        name=text_value(metadata, "general.name"),
        file_type=_file_type(metadata),
        parameter_count=_parameter_count(header),
        context_length=integer_value(metadata, f"{architecture}.context_length", 0),
        embedding_length=integer_value(metadata, f"{architecture}.embedding_length", 0),
        block_count=integer_value(metadata, f"{architecture}.block_count", 0),
        pooling_type=_pooling_type(metadata, architecture),
        has_vision=kind == "projector" or f"{architecture}.vision.block_count" in metadata,
        has_audio=_has_audio(metadata, architecture),
        chat_template=text_value(metadata, "tokenizer.chat_template"),
        metadata={key: _scalar(value) for key, value in metadata.items()},
        tensors=tuple(
            TensorSummary(tensor.name, tensor.type_name, tensor.shape[::-1])
            for tensor in header.tensors
        ),
        refusals=assessment.refusals,
        estimates=assessment.estimates,
        memory=assessment.memory,
        projector_type=vision.projector_type,
        vision_refusals=vision.refusals,
        vision_estimates=vision.estimates,
        vision_memory=vision.memory,
        warnings=header.warnings,
    )


def _file_type(metadata: dict[str, Value]) -> str:
    """MLX's own format has words of its own."""
    known = FILE_TYPES.get(integer_value(metadata, "general.file_type", 0), "unknown")
    return text_value(metadata, NATIVE_QUANTIZATION, known)


def _parameter_count(header: GgufFile) -> int:
    """Numbers in all tensors; where those are MLX's packed words, the file says how many it stands for."""
    numbers = sum(tensor.elements for tensor in header.tensors)
    if NATIVE_MODEL_TYPE not in header.metadata:
        return numbers
    return integer_value(header.metadata, "general.parameter_count", numbers)


def _kind(header: GgufFile) -> str:
    """The rules by which Ollama tells layers apart; a file without tensors is a vocabulary."""
    metadata, architecture = header.metadata, header.architecture
    declared = text_value(metadata, "general.type")
    if declared == "adapter":
        return "adapter"
    has_blocks = f"{architecture}.block_count" in metadata
    sees = f"{architecture}.vision.block_count" in metadata
    encodes = metadata.get("clip.has_vision_encoder") or metadata.get("clip.has_audio_encoder")
    is_clip = architecture == "clip" and bool(encodes)
    if declared in ("projector", "mmproj") or (not has_blocks and (sees or is_clip)):
        return "projector"
    return "model" if header.tensors else "vocabulary"


def _has_audio(metadata: dict[str, Value], architecture: str) -> bool:
    if f"{architecture}.audio.block_count" in metadata:
        return True
    if any(metadata.get(key) == "gemma3nv" for key in metadata if key.endswith("projector_type")):
        return False
    return any(value is True for key, value in metadata.items() if key.endswith("audio_encoder"))


def _pooling_type(metadata: dict[str, Value], architecture: str) -> int | None:
    key = f"{architecture}.pooling_type"
    return integer_value(metadata, key, 0) if key in metadata else None


def _is_array(value: Value) -> bool:
    """A whole file in a text is as long as the arrays and goes with them."""
    is_long = isinstance(value, str) and len(value) > _LONG_TEXT
    return is_long or isinstance(value, list | np.ndarray)


def _scalar(value: Value) -> Scalar | None:
    """None for arrays and long texts; an fp32 number as its shortest decimal, 1e-05 and not 9.99999974e-06."""
    if _is_array(value) or isinstance(value, list | np.ndarray):
        return None
    if isinstance(value, float) and np.isfinite(value) and abs(value) < np.finfo(np.float32).max:
        return float(str(np.float32(value))) if float(np.float32(value)) == value else value
    return value


def _plain(value: Any) -> list[Any] | str:
    if isinstance(value, list | str):
        return value
    numbers: NumberArray = value
    if numbers.dtype == np.float32:
        numbers = numbers.astype("U32").astype(np.float64)
    return numbers.tolist()


def _write_whole(path: pathlib.Path, data: bytes) -> None:
    """A temporary file beside, made durable, then renamed: a pulled plug leaves the old or the new."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        pathlib.Path(temporary).replace(path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
