"""One conversion, from an open GGUF to an artifact in its place: read, plan, write, verify, publish.

Nothing appears under the final name before all of it is on the disk. Raises ConversionError for what
the file or the filesystem is to blame for; the staging folder is removed however it ends.
"""

from __future__ import annotations

import errno
import pathlib
from typing import BinaryIO

import msgspec

from converters.architectures.rope import rope_table
from converters.artifact import (
    ARTIFACT_FILE,
    ARTIFACT_FORMAT,
    CONVERTER_VERSION,
    TOKENIZER_FILE,
    Artifact,
    OnnxGraph,
    RopeTable,
    TensorRecord,
    read_artifact,
)
from converters.errors import NoSpace
from converters.gguf import GgufFile, read_header, text_value
from converters.plan import Plan, plan
from converters.progress import Progress
from converters.staging import check_space, publish, staged, sync_files
from converters.targets.onnx import write as onnx_target
from converters.tensor_reader import TensorReader
from converters.tokenizer import TokenizerFiles, build_tokenizer


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """`source` is the source id that the artifact will carry; `final` the folder to make."""

    source: str
    target: str
    final: pathlib.Path
    precise: bool = False


def convert(file: BinaryIO, request: Request, progress: Progress) -> int:
    """Bytes of the artifact; one that is there already is left as it is."""
    if request.final.exists():
        return read_artifact(request.final).file_bytes
    progress.start("plan")
    header = read_header(file)
    tokenizer = build_tokenizer(header.metadata)
    planned = plan(header, request.target, request.precise)
    check_space(request.final.parent, planned.artifact_bytes)
    try:
        return _convert(
            _Job(header, TensorReader(file.fileno()), tokenizer, planned), request, progress
        )
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"the disk filled up: {error.strerror}") from error
        raise


class _Job(msgspec.Struct, frozen=True):
    header: GgufFile
    reader: TensorReader
    tokenizer: TokenizerFiles
    plan: Plan


def _convert(job: _Job, request: Request, progress: Progress) -> int:
    with staged(request.final) as staging:
        progress.start("write", job.plan.layout.weights_bytes)
        records = onnx_target.write(job.plan, job.reader, staging, progress.advance)
        (staging / TOKENIZER_FILE).write_bytes(job.tokenizer.tokenizer_json)
        artifact = _describe(job, request, records)
        artifact_bytes = _write_description(artifact, staging)
        progress.start("verify", artifact_bytes)
        _verify(job.plan, artifact_bytes, staging)
        progress.start("sync", artifact_bytes)
        sync_files(staging)
        publish(staging, request.final)
        progress.finish()
    return artifact_bytes


def _describe(job: _Job, request: Request, records: list[TensorRecord]) -> Artifact:
    model, planned, tokenizer = job.plan.model, job.plan, job.tokenizer
    first = model.blocks[0].attention
    kv_heads = tuple(block.attention.kv_heads for block in model.blocks)
    return Artifact(
        format=ARTIFACT_FORMAT,
        converter=CONVERTER_VERSION,
        source=request.source,
        variant=planned.variant,
        architecture=model.architecture,
        model_name=model.name,
        block_count=len(model.blocks),
        embedding_length=model.embedding_length,
        heads=first.heads,
        kv_heads=kv_heads if len(set(kv_heads)) > 1 else kv_heads[:1],
        head_size=first.head_size,
        vocabulary=model.vocabulary,
        context_length=model.context_length,
        kv_bytes_per_token=planned.kv_bytes_per_token,
        rope=_rope_tables(job),
        special=tokenizer.special,
        tokenizer_kind=tokenizer.kind,
        pre_tokenizer=tokenizer.pre,
        chat_template=text_value(job.header.metadata, "tokenizer.chat_template"),
        resident_bytes={"cpu": planned.resident_bytes},
        tensors=tuple(records),
        skipped_tensors=planned.skipped,
        precise=planned.is_precise,
        onnx=OnnxGraph(
            embedding=planned.layout.embedding,
            top_k=onnx_target.top_k(model),
            embedding_scale=model.embedding_scale,
        ),
    )


def _rope_tables(job: _Job) -> dict[str, RopeTable]:
    tensors = {tensor.name: tensor for tensor in job.header.tensors}
    tables: dict[str, RopeTable] = {}
    for name, recipe in job.plan.model.rope.items():
        tensor = tensors.get(recipe.factors)
        factors = job.reader.floats(tensor, 0, tensor.elements) if tensor else None
        tables[name] = rope_table(recipe, factors)
    return tables


def _write_description(artifact: Artifact, staging: pathlib.Path) -> int:
    """Writes `artifact.json`, which counts itself in `file_bytes`; gives that sum."""
    others = sum(path.stat().st_size for path in staging.iterdir())
    data, total = b"", -1
    while total != others + len(data):
        total = others + len(data)
        data = msgspec.json.encode(msgspec.structs.replace(artifact, file_bytes=total))
    (staging / ARTIFACT_FILE).write_bytes(data)
    return total


def _verify(planned: Plan, artifact_bytes: int, staging: pathlib.Path) -> None:
    """What is on the disk reads back as what was planned. A failure here is a defect of ours."""
    found = sum(path.stat().st_size for path in staging.iterdir())
    if read_artifact(staging).file_bytes != artifact_bytes or found != artifact_bytes:
        raise RuntimeError(f"the artifact has {found} bytes instead of {artifact_bytes}")
    onnx_target.verify(planned, staging)
