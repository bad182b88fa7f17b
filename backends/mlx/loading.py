"""From a `Load` to an engine: the model, its type of numbers, the room for keys and values.

Memory is estimated before anything is read: weights of `model*.safetensors` stay lazy until then. The
model then proves itself on a few ids; where they overflow its 16 bits, wider ones are taken, aloud.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import pathlib
from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx
from mlx import nn

from backends.engine.contract import Engine, EngineCapabilities
from backends.engine.pace import EXACT_CHUNK, MAX_CHUNK, Pace
from backends.engine.saved_prefixes import open_files
from backends.mlx import device, encoders
from backends.mlx import mlx_lm_internals as internals
from backends.mlx.adapter import attach, read_adapters
from backends.mlx.engine import MlxEngine
from backends.mlx.image_runs import ImageRuns
from backends.mlx.key_values import RowBytes, plan_context, plan_rows
from backends.mlx.mlx_lm_internals import Config, Weights
from backends.mlx.prefix_cache import PrefixCache
from backends.mlx.proof import NUMBERS, batches_agree, probe_ids, proven
from backends.mlx.saved_caches import SavedCaches, knows_caches
from backends.mlx.vectors import MlxVectors, pooled_by
from backends.types import EngineError, Load
from converters.artifact import MLX_CONFIG_FILE, Artifact, ArtifactError, read_artifact
from converters.vision_artifact import read_vision

# Fewer positions than this are no context that anything can be answered in.
MIN_CONTEXT = 16
MAX_CONFIG_BYTES = 16 << 20
# Larger chunks feed a GPU better; a CPU is busy with few ids already.
GPU_CHUNK = 2048
_WIDER = {
    "float16": ("float16", "bfloat16", "float32"),
    "bfloat16": ("bfloat16", "float32"),
    "float32": ("float32",),
}
_log = logging.getLogger(__name__)


def load_engine(load: Load, *, has_batches: bool | None = None) -> Engine:
    """Raises EngineError: "unsupported", "load" or "memory", each with what a user must know.

    `has_batches` None: where they pay. On a CPU two rows take twice the time of one, so there every
    row keeps its own run, and its numbers.
    """
    folder = pathlib.Path(load.artifact)
    artifact = _checked(load, folder)
    place = load.device
    device.prepare_device(place)
    config, weights = _rotated(read_config(folder), load, artifact), _read_weights(folder)
    adapter = read_adapters(load.adapters, artifact, folder)
    stored = str(config.get("torch_dtype", "float16"))
    candidates = plan_numbers(stored, place)
    weights_bytes = _estimated_bytes(weights | adapter, NUMBERS[candidates[0]])
    available = device.available_bytes()
    _check_memory(weights_bytes, available)
    if config.get("model_type") == encoders.MODEL_TYPE:
        if adapter:
            raise EngineError("unsupported", "adapters of encoders are not supported on MLX yet")
        return _load_encoder(folder, artifact, place, candidates)
    model = _built(config, weights)
    attach(model, adapter)
    if load.ranks > 1:
        model = _distributed(load, artifact, folder, model, config)
    del weights, adapter
    numbers, row_bytes = proven(model, stored, candidates, artifact.vocabulary)
    device.wire_weights(weights_bytes)
    if artifact.pooling:
        return MlxVectors(
            run=pooled_by(model, artifact.pooling),
            capabilities=_capabilities(artifact, place, numbers, rows=1, generate=False),
        )
    budget = load.kv_bytes or (available - weights_bytes) // 2
    context = _context(load, artifact, row_bytes, budget)
    is_wanted = place != "cpu" if has_batches is None else has_batches
    is_batched = is_wanted and batches_agree(model, artifact.vocabulary)
    if is_wanted and not is_batched:
        _log.warning("mlx-lm cannot run this model in batches: requests are answered one by one")
    pace = Pace(MAX_CHUNK if place == "cpu" else GPU_CHUNK)
    saved = _saved_caches(load, artifact, model, numbers, pace)
    return MlxEngine(
        model=model,
        row_bytes=row_bytes,
        budget_bytes=budget,
        capabilities=_capabilities(
            artifact, place, numbers,
            rows=plan_rows(load.rows, row_bytes.of(context), budget),
            context_length=context,
            embed=internals.body_of(model) is not None,
            image_width=_image_width(load, artifact),
            reproducible_batches=not is_batched,
        ),
        has_batches=is_batched,
        cache=PrefixCache(saved=saved),
        pace=pace,
        images=ImageRuns(model, config, artifact),
    )  # fmt: skip


def _saved_caches(
    load: Load, artifact: Artifact, model: nn.Module, numbers: str, pace: Pace
) -> SavedCaches | None:
    """None unless asked for, and where not all of a row could be put together again."""
    if not load.prefix_cache_bytes:
        return None
    if load.ranks > 1:
        _log.warning("the prefix cache on disk is off: each rank has a part of the caches")
        return None
    kinds = set(internals.kinds_of(internals.make_caches(model))) - internals.REBUILT_KINDS
    if kinds:
        names = ", ".join(sorted(kinds))
        _log.warning("the prefix cache on disk is off: %s cannot be put together again", names)
        return None
    files = open_files(
        load,
        artifact,
        context_length=_wanted_context(load, artifact),
        runtime=(
            importlib.metadata.version("mlx"),
            internals.VERSION,
            numbers,
            device.architecture(),
        ),
        knows=knows_caches(model),
        exact_step=EXACT_CHUNK,
    )
    return None if files is None else SavedCaches(model, files, lambda: pace.seconds_per_id)


def build_lazily(folder: pathlib.Path, config: Config) -> nn.Module:
    """A model of which nothing is read yet but headers. Raises EngineError("load")."""
    return _built(config, _read_weights(folder))


def _distributed(
    load: Load, artifact: Artifact, folder: pathlib.Path, model: nn.Module, config: Config
) -> nn.Module:
    """One model over several processes."""
    from backends.mlx.ranks import distribute
    from backends.mlx.splitting import plan_split

    if artifact.pooling or load.adapters:
        what = "models with adapters" if load.adapters else "embedding models"
        raise EngineError("unsupported", f"{what} are not split over ranks")
    split = plan_split(load.split, model, config, load.ranks)
    _log.info("%s over %d ranks", split, load.ranks)
    return cast(nn.Module, distribute(model, folder, config, split, load.ranks))


def _checked(load: Load, folder: pathlib.Path) -> Artifact:
    if load.rows < 1 or load.context_length < 1:
        raise EngineError("invalid", "rows and context_length must be at least 1")
    try:
        artifact = read_artifact(folder)
    except ArtifactError as error:
        raise EngineError("load", str(error)) from error
    return artifact


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """`config.json`, bounded. Raises EngineError("load")."""
    path = folder / MLX_CONFIG_FILE
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise EngineError("load", f"{path.name} is too large")
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise EngineError("load", f"{folder.name}: not an artifact for MLX ({error})") from error
    if not isinstance(config, dict):
        raise EngineError("load", f"{path.name} is not an object")
    return config


def _rotated(config: Config, load: Load, artifact: Artifact) -> Config:
    """With the factors of the worker's longrope class: modules read only `long_factor`."""
    table = artifact.rope.get("global")
    if table is None or not table.long_inverse_frequencies:
        return config
    if table.is_long(_wanted_context(load, artifact)):
        return config
    scaling = config["rope_scaling"]
    return {**config, "rope_scaling": {**scaling, "long_factor": scaling["short_factor"]}}


def _read_weights(folder: pathlib.Path) -> Weights:
    """Lazy arrays: nothing but headers is read here."""
    weights: Weights = {}
    for path in sorted(folder.glob("model*.safetensors")):
        try:
            weights |= mx.load(str(path))  # pyright: ignore[reportOperatorIssue]
        except (RuntimeError, ValueError) as error:
            raise EngineError("load", f"{path.name} cannot be read: {error}") from error
    if not weights:
        raise EngineError("load", f"{folder.name}: there are no weights for MLX")
    return weights


def _built(config: Config, weights: Weights) -> nn.Module:
    try:
        return internals.build_model(config, weights)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise EngineError("load", f"weights and config do not fit together: {error}") from error


def plan_numbers(stored: str, place: str) -> Sequence[str]:
    """What a model may compute in, best first: as it is stored, or wider.

    MLX's CPU kernels take 16-bit codes some 60 times slower than fp32 ones, so a CPU gets those.
    """
    return ("float32",) if place == "cpu" else _WIDER.get(stored, _WIDER["float16"])


def _estimated_bytes(weights: Weights, numbers: mx.Dtype) -> int:
    return sum(
        array.size * numbers.size if mx.issubdtype(array.dtype, mx.floating) else array.nbytes
        for array in weights.values()
    )


def _check_memory(weights_bytes: int, available: int) -> None:
    if weights_bytes > available:
        raise EngineError(
            "memory",
            f"the weights take {weights_bytes / 1e9:.1f} GB, and {available / 1e9:.1f} GB are free",
        )


def _load_encoder(
    folder: pathlib.Path, artifact: Artifact, place: str, candidates: Sequence[str]
) -> MlxVectors:
    """Its context is what the model was trained for, whatever rows are asked for."""
    for name in candidates:
        encoder = encoders.load_encoder(folder, NUMBERS[name])
        if encoder.is_finite(probe_ids(artifact.vocabulary)[: artifact.context_length]):
            capabilities = _capabilities(artifact, place, name, rows=1, generate=False)
            return MlxVectors(run=encoder.run, capabilities=capabilities)
        _log.warning("%s overflows in this model", name)
    raise EngineError("load", "the model gives numbers that are not finite, in every type")


def _wanted_context(load: Load, artifact: Artifact) -> int:
    """What is asked for, up to what the model was trained for."""
    return min(load.context_length, artifact.context_length or load.context_length)


def _image_width(load: Load, artifact: Artifact) -> int:
    """Numbers of an image's vectors. Raises EngineError("load") for a projector of another model."""
    width = artifact.embedding_length
    if not load.projector:
        return width
    try:
        vision = read_vision(pathlib.Path(load.projector))
    except ArtifactError as error:
        raise EngineError("load", str(error)) from error
    if vision.width != width or vision.deepstack > artifact.block_count:
        raise EngineError(
            "load",
            f"the projector gives vectors of {vision.width} numbers for {vision.deepstack} blocks "
            f"behind them; this model takes {width}, and has {artifact.block_count} blocks",
        )
    return width * (1 + vision.deepstack)


def _context(load: Load, artifact: Artifact, row_bytes: RowBytes, budget_bytes: int) -> int:
    wanted = _wanted_context(load, artifact)
    context = plan_context(wanted, row_bytes, budget_bytes)
    if context < min(wanted, MIN_CONTEXT):
        raise EngineError(
            "memory",
            f"a KV cache of {budget_bytes} bytes holds {context} tokens of this model, which is "
            "too few to answer in",
        )
    return context


def _capabilities(
    artifact: Artifact,
    place: str,
    numbers: str,
    *,
    rows: int,
    context_length: int = 0,
    generate: bool = True,
    embed: bool = True,
    image_width: int = 0,
    reproducible_batches: bool = False,
) -> EngineCapabilities:
    return EngineCapabilities(
        context_length=context_length or artifact.context_length,
        rows=rows,
        vocabulary=artifact.vocabulary,
        generate=generate,
        embed=embed,
        grammar=generate,
        adapters=True,
        image_width=image_width,
        reproducible_batches=reproducible_batches,
        device=place,
        numbers=numbers,
    )
