"""From a GGUF that carries MLX's own arrays to an artifact: the same bytes, in files that MLX opens."""

from __future__ import annotations

import pathlib

from converters.artifact import ARTIFACT_FILE, MLX_WEIGHTS_FILE, TOKENIZER_FILE
from converters.description import write_description
from converters.gguf import GgufFile
from converters.progress import Progress
from converters.staging import check_space, staged, sync_and_publish
from converters.targets.mlx.native import describe_native, plan_native, write_native
from converters.tensor_reader import TensorReader
from converters.tokenizer import build_tokenizer


def convert_native(
    header: GgufFile,
    reader: TensorReader,
    target: str,
    source: str,
    final: pathlib.Path,
    progress: Progress,
) -> int:
    """Bytes of the artifact. Raises ConversionError."""
    tokenizer = build_tokenizer(header.metadata)
    planned = plan_native(header, target)
    check_space(final.parent, planned.weights_bytes + 2 * header.data_offset)
    with staged(final) as staging:
        progress.start("write", planned.weights_bytes)
        write_native(planned, reader, staging, progress.advance)
        (staging / TOKENIZER_FILE).write_bytes(tokenizer.tokenizer_json)
        described = describe_native(header, planned, source, tokenizer)
        artifact_bytes = write_description(described, ARTIFACT_FILE, staging)
        progress.start("verify", artifact_bytes)
        if (staging / MLX_WEIGHTS_FILE).stat().st_size != planned.weights_bytes:
            raise RuntimeError(f"{MLX_WEIGHTS_FILE} is not what was planned")
        sync_and_publish(staging, final, artifact_bytes, progress)
    return artifact_bytes
