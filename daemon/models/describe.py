"""What clients are told about models: entries of lists, the answer of show, capabilities.

Structs here are the wire's own (contract.md §4.4, 4.5, 4.7): required fields always appear, those
with a default only when set. Hearth's additions are under the one key `hearth`.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import Iterable
from typing import Any

import msgspec

from converters.inspection import Inspection
from daemon.errors import DaemonError
from daemon.models.go_format import go_syntax, go_text
from daemon.models.hearth_facts import HearthFacts, hearth_facts
from daemon.models.jobs import Conversions
from daemon.models.manifest import StoredMessage, human_parameter_count
from daemon.models.modelfile import Command, render
from daemon.models.resolved import ResolvedModel
from daemon.models.sight import Eyes, TargetFor, eyes_of, has_eyes, look
from daemon.models.store import Store
from daemon.models.template_choice import DEFAULT_TEMPLATE, choose_template

# How long a list waits for first looks at weights; what is not ready is described from its config.
LIST_PATIENCE_SECONDS = 2.0
_PARAMETER_COLUMNS = 30
_SHOWN_ELSEWHERE = frozenset({"general.name", "tokenizer.chat_template"})
_UNKNOWN = ("", "unknown")
# llama.cpp's number for a head that scores pairs.
_RANK_POOLING = 4
_GPT_OSS = ("gptoss", "gpt-oss")
_NO_EYES = Eyes()


class Details(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    parent_model: str
    format: str
    family: str
    families: tuple[str, ...] | None
    parameter_size: str
    quantization_level: str
    context_length: int = 0
    embedding_length: int = 0


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model of /api/tags. `size` is bytes by the manifest, `digest` hex without a prefix."""

    name: str
    model: str
    modified_at: datetime.datetime
    size: int
    digest: str
    details: Details
    capabilities: tuple[str, ...] = ()


class ShownTensor(msgspec.Struct, frozen=True):
    """`shape` in GGUF's own order, fastest first."""

    name: str
    type: str
    shape: tuple[int, ...]


class ShowAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer of /api/show. `model_info` values may be ready-made JSON (`msgspec.Raw`)."""

    details: Details
    model_info: dict[str, Any]
    modified_at: datetime.datetime
    license: str = ""
    modelfile: str = ""
    parameters: str = ""
    template: str = ""
    system: str = ""
    messages: tuple[StoredMessage, ...] = ()
    projector_info: dict[str, Any] = {}
    tensors: tuple[ShownTensor, ...] = ()
    capabilities: tuple[str, ...] = ()
    requires: str = ""
    hearth: HearthFacts = HearthFacts()


async def list_models(
    store: Store,
    conversions: Conversions,
    target_for: TargetFor,
    others: Iterable[ResolvedModel] = (),
) -> list[ModelEntry]:
    """Newest first, by whole seconds. Damaged models are left out, as clients expect.

    `target_for` says what weights are converted to here. `others` are models that do not lie in our
    own store.
    """
    models = list(others)
    for stored in store.manifests():
        try:
            models.append(store.resolve(stored.name))
        except DaemonError:
            continue
    await _look_at_weights(models, conversions)
    models.sort(key=lambda model: (-int(model.modified_seconds), model.name))
    return [
        _entry(model, _known(model, conversions), await _known_eyes(model, conversions, target_for))
        for model in models
    ]


async def known_capabilities(
    model: ResolvedModel, conversions: Conversions, target_for: TargetFor
) -> tuple[str, ...]:
    """As lists have them: by what was found out before."""
    eyes = await _known_eyes(model, conversions, target_for)
    return capabilities_of(model, _known(model, conversions), eyes)


async def _look_at_weights(models: list[ResolvedModel], conversions: Conversions) -> None:
    """Starts what was never inspected, and waits a little; the rest goes on by itself."""
    files = {file.digest for model in models for file in model.projectors[:1]}
    files |= {model.model_digest for model in models if model.model_digest}
    unknown = {digest for digest in files if conversions.known_inspection(digest) is None}
    if unknown:
        looks = [asyncio.ensure_future(conversions.inspect(digest)) for digest in unknown]
        _, waiting = await asyncio.wait(looks, timeout=LIST_PATIENCE_SECONDS)
        for look in waiting:
            look.cancel()
        await asyncio.gather(*looks, return_exceptions=True)


def _known(model: ResolvedModel, conversions: Conversions) -> Inspection | None:
    return conversions.known_inspection(model.model_digest) if model.model_digest else None


async def _known_eyes(
    model: ResolvedModel, conversions: Conversions, target_for: TargetFor
) -> Eyes:
    """Without looking at anything new. While the machine is still looked at, nobody sees."""
    inspection = _known(model, conversions)
    if inspection is None or not has_eyes(model, inspection):
        return Eyes()
    projectors = [conversions.known_inspection(file.digest) for file in model.projectors[:1]]
    try:
        target = await asyncio.wait_for(target_for(inspection), LIST_PATIENCE_SECONDS)
    except (TimeoutError, DaemonError):
        return Eyes()
    return eyes_of(model, inspection, projectors[0] if projectors else None, target)


def _entry(model: ResolvedModel, inspection: Inspection | None, eyes: Eyes) -> ModelEntry:
    found = inspection or Inspection(digest="", size=0)
    details = msgspec.structs.replace(
        details_of(model, inspection),
        context_length=model.config.context_length or found.context_length,
        embedding_length=model.config.embedding_length or found.embedding_length,
    )
    return ModelEntry(
        name=model.name.short,
        model=model.name.short,
        modified_at=_local_time(model.modified_seconds),
        size=model.manifest.total_bytes,
        digest=model.digest,
        details=details,
        capabilities=capabilities_of(model, inspection, eyes),
    )


def details_of(model: ResolvedModel, inspection: Inspection | None) -> Details:
    """Without the two lengths, as `show` and `ps` give them. The config's word goes first."""
    config = model.config
    found = inspection or Inspection(digest="", size=0)
    family = config.model_family or found.architecture
    level = config.file_type
    return Details(
        parent_model=model.parent_model,
        format=config.model_format or ("gguf" if model.weights else ""),
        family=family,
        families=config.model_families or ((family,) if family else None),
        parameter_size=config.model_type or _parameter_size(found),
        quantization_level=level if level not in _UNKNOWN else found.file_type,
    )


def _parameter_size(inspection: Inspection) -> str:
    return human_parameter_count(inspection.parameter_count) if inspection.digest else ""


def capabilities_of(
    model: ResolvedModel, inspection: Inspection | None, eyes: Eyes = _NO_EYES
) -> tuple[str, ...]:
    """In the order of contract.md §4.7; without an inspection, what the manifest alone tells.

    Only eyes that can be used give "vision", as clients that read the word send images.
    """
    found = list(model.config.capabilities)
    if model.weights and "vision" in found:
        found.remove("vision")
    template = choose_template(model, inspection)
    found += [name for name in ("tools", "thinking") if name in template.capabilities]
    if inspection is not None:
        found += _seen_in_weights(inspection, eyes)
    found += ["insert"] if "insert" in template.capabilities else []
    found += ["thinking"] if model.config.model_family in _GPT_OSS else []
    return tuple(dict.fromkeys(found))


def _seen_in_weights(inspection: Inspection, eyes: Eyes) -> list[str]:
    found = {None: "completion", _RANK_POOLING: "rerank"}.get(inspection.pooling_type, "embedding")
    senses = [("vision", eyes.can_see), ("audio", inspection.has_audio)]
    return [found, *(name for name, is_there in senses if is_there)]


async def show(
    model: ResolvedModel,
    conversions: Conversions,
    target_for: TargetFor,
    *,
    verbose: bool = False,
    system: str = "",
    options: dict[str, Any] | None = None,
) -> ShowAnswer:
    """`system` and `options` change the Modelfile's text only. Raises when weights are unreadable."""
    inspection = await _inspect(model, conversions)
    eyes = await look(model, inspection, conversions, target_for) if inspection else Eyes()
    template = choose_template(model, inspection).text
    return ShowAnswer(
        details=details_of(model, inspection),
        model_info=await _model_info(model, inspection, conversions, verbose),
        modified_at=_local_time(model.modified_seconds),
        license="\n".join(model.licenses),
        modelfile=modelfile_text(model, inspection, system=system, options=options or {}),
        parameters=parameters_text(model.parameters),
        template=template,
        system=model.system,
        messages=model.messages,
        projector_info=await _projector_info(model, conversions),
        tensors=tuple(ShownTensor(t.name, t.type, t.shape) for t in inspection.tensors)
        if inspection
        else (),
        capabilities=capabilities_of(model, inspection, eyes),
        requires=model.config.requires,
        hearth=hearth_facts(model, inspection, conversions, eyes),
    )


async def _inspect(model: ResolvedModel, conversions: Conversions) -> Inspection | None:
    """None for what has no weights here: stubs of remote models, safetensors."""
    if model.weights is None:
        return None
    return await conversions.inspect(model.require_weights().digest)


async def _model_info(
    model: ResolvedModel,
    inspection: Inspection | None,
    conversions: Conversions,
    verbose: bool,
) -> dict[str, Any]:
    if inspection is None:
        return {}
    info: dict[str, Any] = {
        key: value for key, value in inspection.metadata.items() if key not in _SHOWN_ELSEWHERE
    }
    info["general.parameter_count"] = inspection.parameter_count
    return info | (await conversions.arrays(model.model_digest) if verbose else {})


async def _projector_info(model: ResolvedModel, conversions: Conversions) -> dict[str, Any]:
    """Metadata of the first projector; nothing where that cannot be read."""
    with contextlib.suppress(DaemonError):
        for projector in model.projectors[:1]:
            return dict((await conversions.inspect(projector.digest)).metadata)
    return {}


def modelfile_text(
    model: ResolvedModel,
    inspection: Inspection | None,
    *,
    system: str = "",
    options: dict[str, Any] | None = None,
) -> str:
    """A Modelfile that makes this model again: contract.md §4.5.1.

    Unlike other servers' it has no TEMPLATE where the weights' own template is all there is: a
    default one would take its place in the model that is made of it.
    """
    own_template = inspection.chat_template if inspection else ""
    header = (
        '# Modelfile generated by "ollama show"\n'
        "# To build a new Modelfile based on this, replace FROM with:\n"
        f"# FROM {model.name.short}\n\n"
    )
    sources = [Command("from", str(model.weights.path))] if model.weights else []
    sources += [Command("adapter", str(adapter.path)) for adapter in model.adapters]
    sources += [Command("draft", str(model.draft.path))] if model.draft else []
    sources += [Command("from", str(projector.path)) for projector in model.projectors]
    texts = {
        "template": model.template or ("" if own_template else DEFAULT_TEMPLATE),
        "system": system or model.system,
        "renderer": model.config.renderer,
        "parser": model.config.parser,
        "requires": model.config.requires,
    }
    commands = sources + [Command(name, text) for name, text in texts.items() if text]
    for key, value in _lines(model.parameters | (options or {})):
        commands.append(Command("parameter", go_text(value), key))
    commands += [Command("license", text) for text in model.licenses]
    commands += [Command("message", m.content, m.role) for m in model.messages]
    return header + render(commands)


def parameters_text(parameters: dict[str, Any]) -> str:
    """One line per value, the key in 30 columns, the value as Go writes it: contract.md §4.5.2."""
    lines = _lines(parameters)
    return "\n".join(f"{key.ljust(_PARAMETER_COLUMNS)} {go_syntax(value)}" for key, value in lines)


def _lines(parameters: dict[str, Any]) -> list[tuple[str, object]]:
    """Lists become one line per item."""
    found: list[tuple[str, object]] = []
    for key, value in parameters.items():
        found += [(key, item) for item in (value if isinstance(value, list) else [value])]  # pyright: ignore[reportUnknownVariableType]
    return found


def _local_time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).astimezone()
