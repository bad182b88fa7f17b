"""The variables and rules this field's Go templates are written for, around the plain language.

Three forms: `.Messages` (the whole conversation at once), legacy (`.System .Prompt .Response`, one
rendering a turn) and fill-in-the-middle (`.Prompt .Suffix`). Adjacent messages of one role are
collated first, tool results excepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from backends.text.go_template import inspect
from backends.text.go_template.evaluate import evaluate
from backends.text.go_template.nodes import Command as CommandNode
from backends.text.go_template.nodes import Dot as DotNode
from backends.text.go_template.nodes import Fields, Pipeline, Print, Tree
from backends.text.go_template.parser import parse
from backends.text.go_template.values import JsonList, JsonMap, Record
from backends.types import Message, ToolCall

# What of a tool's parameter schema is shown to a model, in this order.
_PROPERTY_KEYS = ("anyOf", "type", "items", "description", "enum", "properties", "required")


@dataclass(frozen=True, slots=True)
class Thinking:
    """`level` is empty for plain on or off."""

    is_set: bool = False
    is_on: bool = False
    level: str = ""

    def variables(self) -> dict[str, object]:
        level = self.level or ("medium" if self.is_on else "")
        return {"Think": self.is_on, "ThinkLevel": level, "IsThinkSet": self.is_set}


class GoTemplate:
    """A parsed template. Immutable; safe to cache by its text."""

    def __init__(self, source: str) -> None:
        """Raises TemplateSyntaxError."""
        tree = parse(source)
        names = inspect.variables(tree)
        if not names & {"messages", "response"}:
            tree = replace(tree, root=(*tree.root, _response_node()))
        self._tree = tree
        self.variables = inspect.variables(tree)
        self.thinking_tags = inspect.thinking_tags(tree)
        self.tool_call_tag = inspect.tool_call_tag(tree)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[bytes] = (),
        thinking: Thinking = Thinking(),  # frozen
    ) -> str:
        """The prompt for a conversation. Raises TemplateError."""
        system, collated = collate(messages)
        if "messages" not in self.variables:
            return self._legacy(collated, thinking)
        values = {
            "System": system,
            "Messages": [message_record(message) for message in collated],
            "Tools": JsonList(tool_record(tool) for tool in tools),
            "Response": "",
        }
        return evaluate(self._tree, values | thinking.variables())

    def render_suffix(
        self,
        prompt: str,
        suffix: str,
        *,
        thinking: Thinking = Thinking(),  # frozen
    ) -> str:
        """The prompt for filling in between two texts."""
        values: dict[str, object] = {"Prompt": prompt, "Suffix": suffix, "Response": ""}
        return evaluate(self._tree, values | thinking.variables())

    def _legacy(self, messages: Sequence[Message], thinking: Thinking) -> str:
        rendered: list[str] = []
        turn = {"System": "", "Prompt": "", "Response": ""}

        def finish_turn(tree: Tree) -> None:
            rendered.append(evaluate(tree, {**turn, **thinking.variables()}))
            turn.update(System="", Prompt="", Response="")

        for message in messages:
            is_pending = bool(turn["Response"]) or (
                message.role == "system" and bool(turn["Prompt"])
            )
            if message.role in ("system", "user") and is_pending:
                finish_turn(self._tree)
            slot = {"system": "System", "user": "Prompt", "assistant": "Response"}.get(message.role)
            if slot:
                turn[slot] = message.content
        finish_turn(replace(self._tree, root=inspect.cut_after_response(self._tree.root)))
        return "".join(rendered)


def _response_node() -> Print:
    field = Fields(DotNode(), ("Response",))
    return Print(Pipeline((CommandNode((field,), 1),), (), False, 1))


def collate(messages: Sequence[Message]) -> tuple[str, list[Message]]:
    """All system texts joined by a blank line, and the messages with equal neighbours merged."""
    systems = [message.content for message in messages if message.role == "system"]
    collated: list[Message] = []
    for message in messages:
        if collated and collated[-1].role == message.role != "tool":
            merged = f"{collated[-1].content}\n\n{message.content}"
            collated[-1] = msgspec.structs.replace(collated[-1], content=merged)
        else:
            collated.append(message)
    return "\n\n".join(systems), collated


def message_record(message: Message) -> Record:
    fields = {
        "Role": message.role,
        "Content": message.content,
        "Thinking": message.thinking,
        "Images": list(message.images),
        "ToolCalls": [call_record(call) for call in message.tool_calls],
        "ToolName": message.tool_name,
        "ToolCallID": message.tool_call_id,
    }
    return Record(fields, {"role": message.role, "content": message.content})


def call_record(call: ToolCall) -> Record:
    arguments = JsonMap(msgspec.json.decode(call.arguments, type=dict[str, Any]))
    form = {"index": call.index, "name": call.name, "arguments": arguments}
    function = Record({"Index": call.index, "Name": call.name, "Arguments": arguments}, form)
    return Record({"ID": call.id, "Function": function}, {"function": form})


def tool_record(tool: bytes) -> Record:
    """A tool definition as templates see it; schema keywords no model is shown are dropped."""
    decoded = msgspec.json.decode(tool, type=dict[str, Any])
    function = decoded.get("function") or {}
    parameters = _parameters(function.get("parameters") or {})
    fields = {
        "Name": str(function.get("name", "")),
        "Description": str(function.get("description", "")),
        "Parameters": parameters,
    }
    form = {"name": fields["Name"]}
    if fields["Description"]:
        form["description"] = fields["Description"]
    whole = JsonMap(type=decoded.get("type", "function"))
    if decoded.get("items") is not None:
        whole["items"] = decoded["items"]
    whole["function"] = JsonMap(form | {"parameters": parameters})
    inner = Record(fields, whole["function"])
    return Record({"Type": whole["type"], "Items": decoded.get("items"), "Function": inner}, whole)


def _parameters(schema: dict[str, Any]) -> Record:
    properties = JsonMap(
        (name, _property(prop)) for name, prop in (schema.get("properties") or {}).items()
    )
    form = JsonMap(type=schema.get("type", "object"))
    for key in ("$defs", "items", "required"):
        if schema.get(key):
            form[key] = _as_json(schema[key])
    form["properties"] = properties
    fields = {
        "Type": form["type"],
        "Defs": schema.get("$defs"),
        "Items": schema.get("items"),
        "Required": list(schema.get("required") or []),
        "Properties": properties,
    }
    return Record(fields, form)


def _property(prop: object) -> Record:
    known = prop if isinstance(prop, dict) else {}
    kinds = known.get("type")
    types = [kinds] if isinstance(kinds, str) else list(kinds or [])
    form = JsonMap((key, _as_json(known[key])) for key in _PROPERTY_KEYS if known.get(key))
    if len(types) == 1:
        form["type"] = types[0]
    fields = {
        "AnyOf": list(known.get("anyOf") or []),
        "Type": Record({}, types, text=types[0] if len(types) == 1 else _bracketed(types)),
        "Items": known.get("items"),
        "Description": str(known.get("description", "")),
        "Enum": list(known.get("enum") or []),
        "Required": list(known.get("required") or []),
        "Properties": JsonMap(known.get("properties") or {}),
    }
    return Record(fields, form)


def _bracketed(names: list[Any]) -> str:
    return f"[{' '.join(map(str, names))}]" if names else "[]"


def _as_json(value: object) -> object:
    """The same value, printing as JSON in its own key order."""
    if isinstance(value, dict):
        return JsonMap((key, _as_json(item)) for key, item in value.items())
    if isinstance(value, list):
        return JsonList(_as_json(item) for item in value)
    return value
