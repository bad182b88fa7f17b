"""The adapter of a create request: told apart, looked at, matched with the weights it is for.

One adapter belongs to a model. Whether it fits is known before anything is written or converted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from daemon.errors import Invalid, NotYet
from daemon.models import manifest as media
from daemon.models.create_files import file_size
from daemon.models.create_request import CreateStatus
from daemon.models.jobs import ConversionProgress, Conversions
from daemon.models.manifest import Layer, parse_digest
from daemon.models.resolved import ONLY_ONE_ADAPTER
from daemon.models.store import Store


def adapter_file(adapters: dict[str, str]) -> tuple[str, str]:
    """(base name, hex digest) of the one file. Raises Invalid, NotYet."""
    if not adapters:
        raise Invalid("no files provided to convert")
    names = [path.rsplit("/", 1)[-1] for path in adapters]
    if any(name.endswith(".safetensors") for name in names):
        raise NotYet("adapters from safetensors are not supported by this version yet")
    if len(adapters) > 1:
        raise Invalid(ONLY_ONE_ADAPTER)
    return names[0], parse_digest(next(iter(adapters.values())))


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
