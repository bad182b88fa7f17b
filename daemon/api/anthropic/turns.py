"""The messages of a request, block by block, as the messages that chat templates know.

One message of the wire may become several: results of tools are messages of their own and come
before what the user says with them. Blocks that have no meaning here are left out and named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from backends.types import Message, ToolCall
from daemon.api.anthropic.attachments import ATTACHMENTS, add_attachment, add_nested
from daemon.api.anthropic.wire import Block, WireMessage
from daemon.api.images import Parts
from daemon.errors import Invalid

_ROLES = ("user", "assistant", "system")
# A counter that some clients put before their system prompt, new in every request: it says nothing
# to a model, and no later prompt would begin as an earlier one did.
_BILLING = "x-anthropic-billing-header:"


@dataclass
class Turns:
    """What has been read so far. `ignored` names types of blocks; `_names` the tools by call id."""

    messages: list[Message] = field(default_factory=list[Message])
    ignored: dict[str, None] = field(default_factory=dict[str, None])
    _names: dict[str, str] = field(default_factory=dict[str, str])

    def add_system(self, system: str | Sequence[Block]) -> None:
        """Raises Invalid."""
        if text := system_text(system):
            self.messages.append(Message(role="system", content=text))

    def add(self, message: WireMessage, where: str) -> None:
        """`where` names the message in refusals. Raises Invalid, NotYet."""
        role = message.role.lower()
        if role not in _ROLES:
            raise Invalid(f'{where}.role: unexpected value "{message.role}"')
        if message.content is None:
            raise Invalid(f"{where}.content: field required")
        if isinstance(message.content, str):
            self.messages.append(Message(role=role, content=message.content))
            return
        turn = _Turn()
        for place, block in enumerate(message.content):
            self._take(block, turn, f"{where}.content.{place}")
        self.messages += turn.messages(role)

    def _take(self, block: Block, turn: _Turn, where: str) -> None:
        match block.type:
            case "text":
                turn.parts.add_text(block.text)
            case "thinking":
                turn.thoughts.append(block.thinking)
            case "tool_use":
                turn.calls.append(self._call(block, index=len(turn.calls)))
            case "tool_result":
                turn.results.append(self._result(block, where))
            case kind if kind in ATTACHMENTS:
                add_attachment(turn.parts, block, where)
            case _:
                self.ignored[f'content block "{block.type}"'] = None

    def _call(self, block: Block, index: int) -> ToolCall:
        for name in ("id", "name"):
            if not getattr(block, name):
                raise Invalid(f"tool_use block missing required '{name}' field")
        self._names[block.id] = block.name
        arguments = msgspec.json.encode(block.input)
        return ToolCall(id=block.id, name=block.name, arguments=arguments, index=index)

    def _result(self, block: Block, where: str) -> Message:
        if not block.tool_use_id:
            raise Invalid("tool_result block missing required 'tool_use_id' field")
        parts = Parts()
        add_nested(parts, block.content, f"{where}.content", ATTACHMENTS)
        return Message(
            role="tool",
            content=parts.text,
            images=parts.images,
            image_places=parts.places,
            tool_name=self._names.get(block.tool_use_id, ""),
            tool_call_id=block.tool_use_id,
        )


@dataclass
class _Turn:
    """The parts of one message of the wire."""

    parts: Parts = field(default_factory=Parts)
    thoughts: list[str] = field(default_factory=list[str])
    calls: list[ToolCall] = field(default_factory=list[ToolCall])
    results: list[Message] = field(default_factory=list[Message])

    def messages(self, role: str) -> list[Message]:
        spoken = Message(
            role=role,
            content=self.parts.text,
            images=self.parts.images,
            image_places=self.parts.places,
            thinking="".join(self.thoughts),
            tool_calls=tuple(self.calls),
        )
        says_something = spoken.content or spoken.images or spoken.thinking or spoken.tool_calls
        return [*self.results, *([spoken] if says_something else [])]


def system_text(system: str | Sequence[Block]) -> str:
    """All texts, without anything between them. Raises Invalid for other blocks."""
    if isinstance(system, str):
        return _without_billing(system)
    for place, block in enumerate(system):
        if block.type != "text":
            raise Invalid(f'system.{place}: only text blocks are supported, not "{block.type}"')
    return "".join(_without_billing(block.text) for block in system)


def _without_billing(text: str) -> str:
    return text.partition("\n")[2] if text.startswith(_BILLING) else text
