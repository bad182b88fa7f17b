"""Making models: from an uploaded GGUF or over an existing model (contract.md §7.1-7.2).

The order is the promise: everything is checked, weights are converted, small layers are written,
and only then does the manifest appear, whole. Interrupted at any point, no name is changed. Over an
existing model nothing is ever converted: a persona shares its source's artifact.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable

import msgspec

from converters.artifact import MADE_GGUF
from converters.inspection import Inspection
from daemon.errors import Invalid, LoadFailed, NoSpace, NotYet
from daemon.models import manifest as media
from daemon.models.create_adapter import (
    PEFT_FILES,
    adapter_file,
    adapter_layer,
    convert_adapter,
    import_adapter,
    peft_files,
    weights_layer,
    with_adapter,
)
from daemon.models.create_draft import Draft
from daemon.models.create_files import (
    file_size,
    layer_for,
    named_files,
    tensor_files,
    uploaded,
    weights_first,
)
from daemon.models.create_request import (
    CreateRequest,
    CreateStatus,
    Info,
    check_before_stream,
    check_supported,
    checked_info,
    checked_messages,
    checked_parameters,
)
from daemon.models.create_source import CreateSources, Pull
from daemon.models.create_vision import (
    ONE_SOURCE,
    check_projectors,
    convert_vision,
    with_projectors,
)
from daemon.models.foreign.shelf import ForeignShelf
from daemon.models.importing import Source, import_files
from daemon.models.jobs import ConversionProgress, Conversions
from daemon.models.manifest import (
    ImageConfig,
    Layer,
    Manifest,
    encode_config,
    encode_messages,
    encode_parameters,
    human_parameter_count,
    layer_of,
    parse_digest,
)
from daemon.models.name import ModelName
from daemon.models.quantising import checked_type, float_type, kept_if_used, quantised
from daemon.models.store import Store
from daemon.models.template_choice import template_error

ChooseTarget = Callable[[Inspection], Awaitable[str]]


class Creator:
    """`choose_target` names the artifact for these weights here; it raises when there is none.

    `pull` fetches the model of a `from` that is not on the shelf; None: then it is not found.
    """

    def __init__(
        self,
        store: Store,
        conversions: Conversions,
        choose_target: ChooseTarget,
        pull: Pull | None = None,
        foreign: ForeignShelf | None = None,
    ) -> None:
        self._store = store
        self._conversions = conversions
        self._choose_target = choose_target
        self._sources = CreateSources(store, conversions, pull, foreign)

    def create(self, request: CreateRequest) -> AsyncGenerator[CreateStatus]:
        """Checks what is checked before any stream (raises), then gives the stream of statuses."""
        name = check_before_stream(request)
        return self._create(name, request)

    async def _create(
        self, name: ModelName, request: CreateRequest
    ) -> AsyncGenerator[CreateStatus]:
        file_type = checked_type(request.quantize or request.quantization)
        check_supported(request)
        self._store.require_writable()
        info = checked_info(request.info or {})
        parameters = checked_parameters(request.parameters or {})
        messages = checked_messages(request.messages or [])
        if error := await template_error(request.template):
            raise Invalid(f"template error: {error}")
        if request.source:
            eyes = await self._projectors(request.files or {})
            async with contextlib.aclosing(self._sources.fetch_missing(request)) as steps:
                async for step in steps:
                    yield step
            draft, inherited = await self._sources.draft_of(request.source)
            if eyes:
                draft.require_inspection("the projector")
                draft.layers = with_projectors(draft.layers, eyes)
        else:
            draft, inherited = Draft(config=ImageConfig(model_format="gguf"), layers=[]), {}
            async with contextlib.aclosing(self._add_files(name, draft, request)) as steps:
                async for step in steps:
                    yield step
        if request.adapters is not None:
            async with contextlib.aclosing(self._add_adapter(draft, request.adapters)) as steps:
                async for step in steps:
                    yield step
        used = [*_digests(request.files), *_digests(request.adapters)]
        kinds = (media.MODEL, media.ADAPTER)
        used += [layer.digest[-64:] for layer in draft.layers if layer.media_type in kinds]
        async with kept_if_used(self._store, draft.made):
            with self._store.pinned(used):
                are_new = bool(request.files or request.adapters)
                async with contextlib.aclosing(self._ready(draft, file_type, are_new)) as steps:
                    async for step in steps:
                        yield step
                _add_texts(draft, request, inherited | parameters, bool(parameters), messages)
                draft.config = _config(draft, request, info)
                with self._store.pinned(layer.digest[-64:] for layer in draft.layers):
                    async for step in self._write(name, draft):
                        yield step

    async def _add_files(
        self, name: ModelName, draft: Draft, request: CreateRequest
    ) -> AsyncGenerator[CreateStatus]:
        """A folder of safetensors becomes one GGUF first. Raises Invalid, NotYet, LoadFailed."""
        if listed := tensor_files(request.files):
            with self._store.pinned(digest for _, digest in listed):
                source = Source(name=name.model, files=uploaded(self._store.blobs, listed))
                making = self._add_made(draft, source, MADE_GGUF)
                async with contextlib.aclosing(making) as steps:
                    async for step in steps:
                        yield step
            return
        for whole in named_files(request.files):
            paths = [self._store.blobs.path(digest) for digest in whole.parts]
            for path in paths:
                await asyncio.to_thread(file_size, path, whole.name)
            yield CreateStatus(status="parsing GGUF")
            if len(paths) == 1:
                await self._add_file(draft, whole.name, whole.parts[0])
                continue
            with self._store.pinned(whole.parts):
                making = self._add_made(draft, Source(parts=tuple(paths)), whole.name)
                async with contextlib.aclosing(making) as steps:
                    async for step in steps:
                        yield step
        draft.layers = weights_first(draft.layers)

    async def _projectors(self, files: dict[str, str]) -> list[Layer]:
        """Eyes for the model of a `from`. Raises Invalid, NotYet for other files."""
        if tensor_files(files):
            raise Invalid(ONE_SOURCE)
        found = Draft(config=ImageConfig(), layers=[])
        for whole in named_files(files) if files else ():
            await self._add_file(found, whole.name, whole.parts[0])
        check_projectors(found.layers)
        return found.layers

    async def _add_made(
        self, draft: Draft, source: Source, file_name: str
    ) -> AsyncGenerator[CreateStatus]:
        """Several files become the one GGUF that is added."""
        digests: list[str] = []
        making = import_files(self._store, self._conversions, source, digests.append)
        async with contextlib.aclosing(making) as steps:
            async for step in steps:
                yield step
        draft.made.append(digests[0])
        await self._add_file(draft, file_name, digests[0])

    async def _add_file(self, draft: Draft, file_name: str, digest: str) -> None:
        size = await asyncio.to_thread(file_size, self._store.blobs.path(digest), file_name)
        await asyncio.to_thread(self._store.blobs.touch, digest)
        inspection = await self._conversions.inspect(digest)
        layer = layer_for(file_name, digest, size, inspection)
        draft.layers.append(layer)
        if layer.media_type == media.MODEL:
            draft.inspection = inspection

    async def _add_adapter(
        self, draft: Draft, adapters: dict[str, str]
    ) -> AsyncGenerator[CreateStatus]:
        """Raises what says that it is not for these weights, before anything is converted."""
        weights, listed = weights_layer(draft.layers), peft_files(adapters)
        if listed:
            digests: list[str] = []
            steps = import_adapter(self._store, self._conversions, listed, weights, digests.append)
            async with contextlib.aclosing(steps):
                async for step in steps:
                    yield step
            file_name, digest = PEFT_FILES[1], digests[0]
        else:
            yield CreateStatus(status="parsing GGUF")
            file_name, digest = adapter_file(adapters)
        layer = await adapter_layer(self._store, self._conversions, file_name, digest)
        draft.layers = with_adapter(draft.layers, layer)
        target = await self.target_for(draft.require_inspection("the adapter"))
        await self._conversions.check_adapter(digest, parse_digest(weights.digest), target)

    async def _ready(
        self, draft: Draft, file_type: str, are_new: bool
    ) -> AsyncGenerator[CreateStatus]:
        """Quantises the weights where a type is asked for, and converts those that are new here."""
        if file_type:
            async with contextlib.aclosing(self._quantise(draft, file_type)) as steps:
                async for step in steps:
                    yield step
        if are_new or draft.made:
            with self._store.pinned(draft.made):
                async with contextlib.aclosing(self._convert(draft)) as steps:
                    async for step in steps:
                        yield step

    async def _quantise(self, draft: Draft, file_type: str) -> AsyncGenerator[CreateStatus]:
        """Nothing when the weights are of that type already. What could not run is refused first."""
        source = draft.inspection
        if source is None:
            weights = weights_layer(draft.layers)
            source = await self._conversions.inspect(parse_digest(weights.digest))
        if float_type(source) == file_type:
            return
        await self.target_for(source)
        steps = quantised(self._store, self._conversions, source, file_type, draft.made.append)
        async with contextlib.aclosing(steps):
            async for step in steps:
                yield step
        draft.replace_weights(await self._conversions.inspect(draft.made[-1]))

    async def target_for(self, inspection: Inspection) -> str:
        """What these weights are converted to here. Raises NotYet with the reasons against it."""
        return await required_target(self._choose_target, inspection)

    async def _convert(self, draft: Draft) -> AsyncGenerator[CreateStatus]:
        assert draft.inspection is not None
        target = await self.target_for(draft.inspection)
        digest = parse_digest(weights_layer(draft.layers).digest)
        adapting = convert_adapter(self._conversions, draft.layers, target)
        try:
            async with contextlib.aclosing(
                self._conversions.ensure_artifact(digest, target)
            ) as steps:
                async for step in steps:
                    yield conversion_status(target, step)
            seeing = convert_vision(self._conversions, draft.layers, target)
            for making in (adapting, seeing):
                async with contextlib.aclosing(making) as statuses:
                    async for status in statuses:
                        yield status
        except NoSpace as error:
            yield unconverted_status(error.message)

    async def _write(self, name: ModelName, draft: Draft) -> AsyncGenerator[CreateStatus]:
        config = encode_config(draft.config)
        fresh: set[str] = set()
        for media_type, data in [*draft.texts, (media.CONFIG_TYPE, config)]:
            if await self._store.put_bytes(data):
                fresh.add(layer_of(data, media_type).digest)
        for layer in draft.layers:
            verb = "creating new layer" if layer.digest in fresh else "using existing layer"
            yield CreateStatus(status=f"{verb} {layer.digest}")
        yield CreateStatus(status="writing manifest")
        manifest = Manifest(config=layer_of(config, media.CONFIG_TYPE), layers=tuple(draft.layers))
        small = [config, *(data for _, data in draft.texts)]
        await self._store.write_manifest(name, manifest, small)
        yield CreateStatus(status="success")


def _digests(files: dict[str, str] | None) -> list[str]:
    return [parse_digest(digest) for digest in (files or {}).values()]


async def required_target(choose_target: ChooseTarget, inspection: Inspection) -> str:
    """As `choose_target`, but NotYet when it is this build that cannot convert the weights."""
    try:
        return await choose_target(inspection)
    except LoadFailed as error:
        if inspection.refusals:
            raise NotYet(error.message) from error
        raise


def _add_texts(
    draft: Draft,
    request: CreateRequest,
    parameters: dict[str, object],
    has_parameters: bool,
    messages: tuple[media.StoredMessage, ...],
) -> None:
    """Template, system and messages replace, licences add up, parameters were merged key by key."""
    if request.template:
        draft.drop(media.PROMPT)
        draft.replace(media.TEMPLATE, request.template.encode())
    if request.system:
        draft.replace(media.SYSTEM, request.system.encode())
    for text in request.licenses:
        draft.add(media.LICENSE, text.encode())
    if has_parameters:
        draft.replace(media.PARAMETERS, encode_parameters(parameters))
    if messages:
        draft.replace(media.MESSAGES, encode_messages(messages))


def _config(draft: Draft, request: CreateRequest, info: Info) -> ImageConfig:
    """What the weights say, under what the request says, under what `info` says."""
    config, seen = draft.config, draft.inspection
    family = info.model_family or (seen.architecture if seen else config.model_family)
    size = human_parameter_count(seen.parameter_count) if seen else config.model_type
    return msgspec.structs.replace(
        config,
        model_family=family,
        model_families=(family,) if family else None,
        model_type=info.parameter_size or size,
        file_type=info.quantization_level or (seen.file_type if seen else config.file_type),
        renderer=request.renderer or config.renderer,
        parser=request.parser or config.parser,
        requires=request.requires or config.requires,
        capabilities=tuple(dict.fromkeys((*config.capabilities, *info.capabilities))),
        context_length=info.context_length or config.context_length,
        embedding_length=info.embedding_length or config.embedding_length,
        base_name=info.base_name or config.base_name,
    )


def conversion_status(target: str, step: ConversionProgress) -> CreateStatus:
    """The line that a step of a conversion makes in every stream of statuses."""
    words = {
        "queued": "waiting for another conversion",
        "verify": f"verifying the {target} artifact",
        "sync": f"writing the {target} artifact to disk",
    }
    status = words.get(step.phase, f"converting to {target}")
    return CreateStatus(status=status, total=step.total, completed=step.done)


def unconverted_status(reason: str) -> CreateStatus:
    """The model is kept all the same: loading it converts into memory where that fits."""
    return CreateStatus(
        status=f"the model stays unconverted, as its artifact does not fit: {reason}"
    )
