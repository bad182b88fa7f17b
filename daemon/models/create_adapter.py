"""The adapter of a create request, a GGUF or PEFT's two files: told apart, looked at, matched with the weights it is for.

One adapter belongs to a model. Whether it fits is known before anything is written or converted.
"""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncGenerator, Callable

import msgspec

from daemon.errors import Invalid, NotYet
from daemon.models import manifest as media
from daemon.models.create_files import file_size, tensor_files, uploaded
from daemon.models.create_request import CreateStatus
from daemon.models.importing import Source, import_files
from daemon.models.jobs import ConversionProgress, Conversions
from daemon.models.manifest import Layer, parse_digest
from daemon.models.resolved import ONLY_ONE_ADAPTER
from daemon.models.store import Store

PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")


class AdapterSource(Source, frozen=True, kw_only=True):
    """PEFT's files, for the weights at `base`."""

    base: pathlib.Path

    def arguments(self) -> tuple[str, ...]:
        given = ["import-adapter", "--base", str(self.base)]
        for name, path in self.files:
            given += ["--file", name, str(path)]
        return tuple(given)


def adapter_file(adapters: dict[str, str]) -> tuple[str, str]:
    """(base name, hex digest) of the one file. Raises Invalid."""
    if not adapters:
        raise Invalid("no files provided to convert")
    if len(adapters) > 1:
        raise Invalid(ONLY_ONE_ADAPTER)
    path, digest = next(iter(adapters.items()))
    return path.rsplit("/", 1)[-1], parse_digest(digest)


def peft_files(adapters: dict[str, str]) -> list[tuple[str, str]]:
    """(name, hex digest) of PEFT's two files; empty for other adapters. Raises Invalid, NotYet."""
    named = [(path.rsplit("/", 1)[-1], digest) for path, digest in tensor_files(adapters)]
    kept = [(name, digest) for name, digest in named if name in PEFT_FILES]
    tensors = [name for name, _ in named if name.endswith(".safetensors")]
    if len(tensors) > 1 or len(kept) > len(PEFT_FILES):
        raise Invalid(ONLY_ONE_ADAPTER)
    if named and len(kept) < len(PEFT_FILES):
        raise NotYet(
            f"an adapter of safetensors is {' and '.join(PEFT_FILES)}, as PEFT writes them;"
            f" {tensors[0]} is not supported"
        )
    return kept


async def import_adapter(
    store: Store,
    conversions: Conversions,
    listed: list[tuple[str, str]],
    weights: Layer,
    tell_digest: Callable[[str], object],
) -> AsyncGenerator[CreateStatus]:
    """PEFT's files become a GGUF adapter of ours. Raises as `import_files` does."""
    with store.pinned([*(digest for _, digest in listed), parse_digest(weights.digest)]):
        source = AdapterSource(
            name="adapter",
            files=uploaded(store.blobs, listed),
            base=store.blobs.path(parse_digest(weights.digest)),
        )
        steps = import_files(store, conversions, source, tell_digest)
        async with contextlib.aclosing(steps):
            async for step in steps:
                words = step.status.replace("converting model", "converting adapter")
                yield msgspec.structs.replace(step, status=words)


async def adapter_layer(
    store: Store, conversions: Conversions, file_name: str, digest: str
) -> Layer:
    """The layer of an uploaded adapter. Raises Invalid, Internal when it is not here."""
    size = await asyncio.to_thread(file_size, store.blobs.path(digest), file_name)
    await asyncio.to_thread(store.blobs.touch, digest)
    inspection = await conversions.inspect(digest)
    if inspection.kind != "adapter":
        raise Invalid(f"{file_name} is a {inspection.kind}, and not an adapter")
    return Layer(media_type=media.ADAPTER, digest=f"sha256:{digest}", size=size, source=file_name)


def with_adapter(layers: list[Layer], adapter: Layer) -> list[Layer]:
    """After the weights. Raises Invalid where there is one already."""
    known = [layer for layer in layers if layer.media_type == media.ADAPTER]
    if known:
        raise Invalid(f"{ONLY_ONE_ADAPTER}, and {known[0].source or 'the model'} brings one")
    place = layers.index(weights_layer(layers)) + 1
    return [*layers[:place], adapter, *layers[place:]]


def weights_layer(layers: list[Layer]) -> Layer:
    """Raises Invalid where there are no weights."""
    for layer in layers:
        if layer.media_type == media.MODEL:
            return layer
    raise Invalid("an adapter needs the GGUF weights that it is for")


async def convert_adapter(
    conversions: Conversions, layers: list[Layer], target: str
) -> AsyncGenerator[CreateStatus]:
    """Nothing where the layers have none, or where the weights stay unconverted."""
    for adapter in (layer for layer in layers if layer.media_type == media.ADAPTER):
        weights = parse_digest(weights_layer(layers).digest)
        if conversions.artifact(weights, target) is None:
            return
        steps = conversions.ensure_adapter(parse_digest(adapter.digest), weights, target)
        async with contextlib.aclosing(steps):
            async for step in steps:
                yield adapter_status(step)


def adapter_status(step: ConversionProgress) -> CreateStatus:
    is_waiting = step.phase == "queued"
    status = "waiting for another conversion" if is_waiting else "converting adapter"
    return CreateStatus(status=status, total=step.total, completed=step.done)
