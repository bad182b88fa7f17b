"""What all dialects share on the way from a request to a `Chat`. Pure.

What stands before the messages of a request, whether the model shall think, and what is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from backends.types import Message
from daemon.api.lookup import KnownModel, require_sight
from daemon.api.options import ResolvedOptions, resolve_options
from daemon.config import Config
from daemon.errors import Invalid, NotYet


def options_for(
    sent: Mapping[str, Any] | None, model: KnownModel, config: Config
) -> ResolvedOptions:
    """`sent` goes over the model's own parameters. Raises BadOption."""
    return resolve_options(
        sent,
        model.stored.parameters,
        default_context_length=config.context_length,
        trained_context_length=model.trained_context_length,
        has_eyes=model.can("vision"),
    )


def conversation(sent: tuple[Message, ...], model: KnownModel) -> tuple[Message, ...]:
    """The model's examples, then `sent`; its system text leads unless `sent` brings one."""
    brings_system = bool(sent) and sent[0].role == "system"
    return (*leading_messages(model, "" if brings_system else model.stored.system), *sent)


def leading_messages(model: KnownModel, system: str) -> tuple[Message, ...]:
    """What stands before every request: a system text, where there is one, and the model's examples."""
    return (*system_messages(system), *stored_messages(model))


def system_messages(text: str) -> tuple[Message, ...]:
    return (Message(role="system", content=text),) if text else ()


def stored_messages(model: KnownModel) -> tuple[Message, ...]:
    return tuple(Message(role=one.role, content=one.content) for one in model.stored.messages)


def check_think(think: bool | str | None, model: KnownModel) -> None:
    """Raises Invalid for thoughts of a model that has none."""
    if think and not model.can("thinking"):
        raise Invalid(f'"{model.asked}" does not support thinking')


def think_of(think: bool | str | None, model: KnownModel) -> bool | str | None:
    """A model that can think does, unless the client says otherwise."""
    return True if think is None and model.can("thinking") else think


def check_images(messages: Iterable[Message], model: KnownModel) -> None:
    """Raises Invalid, NotYet for images in front of a model that cannot see them."""
    if any(message.images for message in messages):
        require_sight(model)


def refuse_later_fields(fields: dict[str, Any]) -> None:
    """Raises NotYet naming each field of `fields` that says something."""
    named = [f'"{name}"' for name, value in fields.items() if value]
    if named:
        raise NotYet(f"not supported by this version yet: {', '.join(named)}")
