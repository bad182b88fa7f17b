"""One conversion, from an open GGUF to an artifact in its place: read, plan, write, verify, publish.

Nothing appears under the final name before all of it is on the disk. Raises ConversionError for what
the file or the filesystem is to blame for; the staging folder is removed however it ends.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import BinaryIO

import msgspec

from converters.architectures.library import library_form
from converters.architectures.mixers import Attention, LatentAttention
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
from converters.convert_native import convert_native
from converters.description import write_description
from converters.foreign_graph import is_foreign, read_facts
from converters.gguf import GgufFile, read_header, text_value
from converters.parallel import RunInOrder, one_by_one
from converters.plan import Plan, plan
from converters.progress import Progress
from converters.staging import check_space, staged, sync_and_publish
from converters.targets.mlx import write as mlx_target
from converters.targets.mlx.layout import Layout as MlxLayout
from converters.targets.mlx.native import is_native
from converters.targets.onnx.layout import Layout as OnnxLayout
from converters.targets.onnx.weights import write_weights
from converters.tensor_reader import TensorReader
from converters.tokenizer import TokenizerFiles, build_tokenizer


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """`source` is the source id that the artifact will carry; `final` the folder to make."""

    source: str
    target: str
    final: pathlib.Path
    precise: bool = False


def convert(
    file: BinaryIO, request: Request, progress: Progress, run: RunInOrder = one_by_one
) -> int:
    """Bytes of the artifact; one that is there already is left as it is."""
    if request.final.exists():
        return read_artifact(request.final).file_bytes
    progress.start("plan")
    header, reader = library_form(read_header(file)), TensorReader(file)
    if is_native(header):
        return convert_native(
            header, reader, request.target, request.source, request.final, progress
        )
    if is_foreign(header):
        return _convert_graph(header, reader, request, progress)
    return _convert(_job(header, reader, request), request, progress, run)


def _convert_graph(
    header: GgufFile, reader: TensorReader, request: Request, progress: Progress
) -> int:
    from converters.convert_graph import write_graph

    tokenizer = build_tokenizer(header.metadata)
    facts = read_facts(header, request.target)
    check_space(request.final.parent, facts.artifact_bytes)
    with staged(request.final) as staging:
        artifact = write_graph(facts, reader, tokenizer, request.source, staging, progress)
        artifact_bytes = write_description(artifact, ARTIFACT_FILE, staging)
        sync_and_publish(staging, request.final, artifact_bytes, progress)
    return artifact_bytes


class _Job(msgspec.Struct, frozen=True):
    header: GgufFile
    reader: TensorReader
    tokenizer: TokenizerFiles
    plan: Plan


def _job(header: GgufFile, reader: TensorReader, request: Request) -> _Job:
    tokenizer = build_tokenizer(header.metadata)
    planned = plan(header, request.target, request.precise)
    check_space(request.final.parent, planned.artifact_bytes)
    return _Job(header, reader, tokenizer, planned)


def _convert(job: _Job, request: Request, progress: Progress, run: RunInOrder) -> int:
    with staged(request.final) as staging:
        progress.start("write", job.plan.layout.weights_bytes)
        rope = _rope_tables(job)
        records = _write_target(job, rope, staging, run, progress.advance)
        (staging / TOKENIZER_FILE).write_bytes(job.tokenizer.tokenizer_json)
        artifact = _describe(job, request, rope, records)
        artifact_bytes = write_description(artifact, ARTIFACT_FILE, staging)
        progress.start("verify", artifact_bytes)
        _verify(job.plan, artifact_bytes, staging)
        sync_and_publish(staging, request.final, artifact_bytes, progress)
    return artifact_bytes


def _write_target(
    job: _Job,
    rope: dict[str, RopeTable],
    staging: pathlib.Path,
    run: RunInOrder,
    advance: Callable[[int], None],
) -> list[TensorRecord]:
    model, layout, reader = job.plan.model, job.plan.layout, job.reader
    if isinstance(layout, MlxLayout):
        return mlx_target.write(model, layout, rope, reader, staging, run, advance)
    # Imported only where a graph is written: onnx takes as long as a small model.
    from converters.targets.onnx.write import write_graph

    write_graph(model, layout, staging)
    return write_weights(layout, reader, staging, run, advance)


def _describe(
    job: _Job, request: Request, rope: dict[str, RopeTable], records: list[TensorRecord]
) -> Artifact:
    model, planned, tokenizer = job.plan.model, job.plan, job.tokenizer
    mixers = [block.mixer for block in model.blocks]
    first = next(each for each in mixers if isinstance(each, Attention | LatentAttention))
    kv_heads = tuple(each.kv_heads for each in mixers)
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
        context_length=planned.context_length,
        kv_bytes_per_token=planned.kv_bytes_per_token,
        causal=model.encoder.is_causal if model.encoder else True,
        pooling=model.encoder.pooling if model.encoder else "",
        rank_template=text_value(job.header.metadata, "tokenizer.chat_template.rerank"),
        has_probabilities=model.encoder.has_softmax if model.encoder else False,
        rope=rope,
        special=tokenizer.special,
        tokenizer_kind=tokenizer.kind,
        pre_tokenizer=tokenizer.pre,
        chat_template=text_value(job.header.metadata, "tokenizer.chat_template"),
        resident_bytes=_resident_bytes(planned),
        kv_bytes=_kv_bytes(planned),
        row_bytes=planned.row_bytes,
        tensors=tuple(records),
        skipped_tensors=planned.skipped,
        precise=planned.is_precise,
        onnx=_onnx_graph(planned),
    )


def _resident_bytes(planned: Plan) -> dict[str, int]:
    """MLX's CPU build computes in fp32, whatever the weights are stored in."""
    if isinstance(planned.layout, MlxLayout):
        return {"metal": planned.resident_bytes, "cpu": planned.layout.fp32_bytes}
    device = "cuda" if planned.layout.number == "float16" else "cpu"
    return {device: planned.resident_bytes}


def _kv_bytes(planned: Plan) -> dict[str, int]:
    """Where a device's own numbers are others than the target's."""
    if isinstance(planned.layout, MlxLayout):
        return {"metal": planned.kv_bytes_per_token, "cpu": planned.layout.cached_numbers * 4}
    return {}


def _onnx_graph(planned: Plan) -> OnnxGraph | None:
    if not isinstance(planned.layout, OnnxLayout):
        return None
    from converters.targets.onnx.write import row_states, top_k, vector_size

    altup = planned.model.altup
    return OnnxGraph(
        embedding=planned.layout.embedding,
        top_k=top_k(planned.model),
        embedding_scale=planned.model.embedding_scale,
        per_block=planned.layout.per_block,
        per_block_scale=altup.inputs**0.5 if altup else 1.0,
        key_value_dtype=planned.layout.number,
        states=row_states(planned.model),
        vector_size=vector_size(planned.model) if planned.model.encoder else 0,
        deepstack=planned.model.deepstack,
    )


def _rope_tables(job: _Job) -> dict[str, RopeTable]:
    tensors = {tensor.name: tensor for tensor in job.header.tensors}
    tables: dict[str, RopeTable] = {}
    for name, recipe in job.plan.model.rope.items():
        factors, long_factors = (
            job.reader.floats(tensor, 0, tensor.elements) if tensor else None
            for tensor in (tensors.get(recipe.factors), tensors.get(recipe.long_factors))
        )
        tables[name] = rope_table(recipe, factors, long_factors)
    return tables


def _verify(planned: Plan, artifact_bytes: int, staging: pathlib.Path) -> None:
    """What is on the disk reads back as what was planned. A failure here is a defect of ours."""
    found = sum(path.stat().st_size for path in staging.iterdir())
    if read_artifact(staging).file_bytes != artifact_bytes or found != artifact_bytes:
        raise RuntimeError(f"the artifact has {found} bytes instead of {artifact_bytes}")
    if isinstance(planned.layout, MlxLayout):
        mlx_target.verify(planned.layout, staging)
    else:
        from converters.targets.onnx.write import verify

        verify(planned.layout, staging)
