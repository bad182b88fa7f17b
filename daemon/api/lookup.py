"""From the name a client sent to a model of the shelf and what it can do: contract.md §1.4, 1.5."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from daemon.api.services import Services
from daemon.errors import Forbidden, Invalid, NotFound, NotYet
from daemon.models.describe import capabilities_of
from daemon.models.name import ModelName, is_cloud_reference, parse_name
from daemon.models.resolved import ResolvedModel
from daemon.models.sight import look
from daemon.models.template_choice import choose_template

CLOUD_DISABLED = "ollama cloud is disabled: remote model is unavailable"
CLOUD_DETAILS_DISABLED = "ollama cloud is disabled: remote model details are unavailable"


@dataclass(frozen=True)
class KnownModel:
    """`asked` is the name as sent, which answers and errors echo.

    `go_template` is empty where the weights' own chat template is used; `blindness` says why a model
    that has eyes cannot use them here.
    """

    asked: str
    stored: ResolvedModel
    capabilities: tuple[str, ...]
    trained_context_length: int
    go_template: str
    blindness: str = ""

    def can(self, capability: str) -> bool:
        return capability in self.capabilities


def resolve(services: Services, asked: str) -> ResolvedModel:
    """Raises NotFound, Invalid for no name, Forbidden for somebody else's computers."""
    if is_cloud_reference(asked):
        raise Forbidden(CLOUD_DISABLED)
    stored = resolve_stored(services, parse_name(asked), asked)
    if stored.config.remote_host:
        raise Forbidden(CLOUD_DISABLED)
    return stored


async def find(services: Services, asked: str) -> ResolvedModel:
    """As `resolve`, with another look through other programs' folders for an unknown name."""
    if not is_cloud_reference(asked):
        await services.foreign.look_for(parse_name(asked))
    return resolve(services, asked)


def resolve_stored(services: Services, name: ModelName, shown: str) -> ResolvedModel:
    """On our own shelf, else in another program's folder. Raises NotFound, NotYet."""
    try:
        return services.store.resolve(name)
    except NotFound:
        if not services.foreign.knows(name):
            raise NotFound(f"model '{shown}' not found") from None
    return services.foreign.resolve(name)


async def know(services: Services, asked: str, stored: ResolvedModel) -> KnownModel:
    """Looks into the weights (once per blob, remembered). Raises LoadFailed, Invalid."""
    stored = await services.foreign.identified(stored)
    stored.require_weights()
    inspection = await services.conversions.inspect(stored.model_digest)
    eyes = await look(stored, inspection, services.conversions, services.creator.target_for)
    return KnownModel(
        asked=asked,
        stored=stored,
        capabilities=capabilities_of(stored, inspection, eyes),
        trained_context_length=inspection.context_length,
        go_template=choose_template(stored, inspection).go_template,
        blindness=eyes.blindness,
    )


def require_completion(model: KnownModel, verb: Literal["generate", "chat"]) -> None:
    if not model.can("completion"):
        raise Invalid(f'"{model.asked}" does not support {verb}')


def require_capability(model: KnownModel, capability: str) -> None:
    """The text that clients of tools and inserts look for, with the full name."""
    if not model.can(capability):
        raise Invalid(f"{model.stored.name.full} does not support {capability}")


def require_sight(model: KnownModel) -> None:
    """For a request with images. Raises Invalid, or NotYet where the eyes are there but not usable."""
    if not model.can("vision"):
        if model.blindness:
            raise NotYet(f"{model.stored.name.full} does not support vision: {model.blindness}")
        require_capability(model, "vision")
