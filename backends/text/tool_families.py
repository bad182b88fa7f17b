"""How each family of models writes tool calls, told from the text of its chat template. Pure data.

To add a family: one entry in `FAMILIES`; the first whose marks are all in the template is taken.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from backends.text.json_calls import read_json_calls
from backends.text.literal_calls import read_gemma_calls, read_python_calls
from backends.text.tagged_arguments import read_glm_calls, read_qwen_calls
from backends.text.tool_calls import CallReader, LeadingCalls, TaggedCalls, ToolCallParser
from backends.text.tools import Tools


class ToolFamily(NamedTuple):
    """Calls stand between `opening` and `closing` ("" up to the end of the answer).

    With `brackets` they are the whole answer and begin with one of them, the tags may be missing.
    `form` is how a call can be demanded by a grammar: one JSON object, a list of them, or not at all.
    """

    name: str
    marks: tuple[str, ...]
    opening: str
    closing: str = ""
    brackets: str = ""
    read: CallReader = read_json_calls
    form: str = ""
    arguments_key: str = "arguments"

    def parser(self, tools: Tools) -> ToolCallParser:
        if self.brackets:
            return LeadingCalls(self.brackets, tools, (self.opening, self.closing), self.read)
        return TaggedCalls(self.opening, self.closing, tools, self.read)


_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_KIMI = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")

FAMILIES = (
    ToolFamily("deepseek", _DEEPSEEK[:1], *_DEEPSEEK),
    ToolFamily("kimi", _KIMI[:1], *_KIMI),
    ToolFamily(
        "qwen-coder", ("<tool_call>", "<function="), "<tool_call>", "</tool_call>",
        read=read_qwen_calls,
    ),
    ToolFamily(
        "glm", ("<tool_call>", "<arg_key>"), "<tool_call>", "</tool_call>", read=read_glm_calls
    ),
    ToolFamily("gemma4", ("<|tool_call>", "<tool_call|>"), "<|tool_call>", "<tool_call|>",
               read=read_gemma_calls),
    ToolFamily("hermes", ("<tool_call>",), "<tool_call>", "</tool_call>", form="object"),
    ToolFamily("ministral", ("[TOOL_CALLS]", "[ARGS]"), "[TOOL_CALLS]"),
    ToolFamily("mistral", ("[TOOL_CALLS]",), "[TOOL_CALLS]", form="list"),
    ToolFamily("lfm2", ("<|tool_call_start|>",), "<|tool_call_start|>", "<|tool_call_end|>",
               read=read_python_calls),
    ToolFamily("phi", ("<|tool_call|>", "<|/tool_call|>"), "<|tool_call|>", "<|/tool_call|>",
               form="list"),
    ToolFamily("granite", ("<|tool_call|>",), "<|tool_call|>", form="list"),
    ToolFamily("nemotron", ("<TOOLCALL>",), "<TOOLCALL>", "</TOOLCALL>", form="list"),
    ToolFamily("cohere", ("<|START_ACTION|>",), "<|START_ACTION|>", "<|END_ACTION|>"),
    ToolFamily("functiongemma", ("<start_function_call>",), "<start_function_call>",
               "<end_function_call>", read=read_gemma_calls),
    ToolFamily("gemma", ("```tool_code",), "```tool_code", "```", read=read_python_calls),
    ToolFamily("llama-pythonic", ("[func_name1(",), "<|python_start|>", "<|python_end|>",
               brackets="[", read=read_python_calls),
    ToolFamily("functionary", ("<function=",), "<function=", "</function>"),
    ToolFamily("llama", ("<|python_tag|>",), "<|python_tag|>", brackets="{", form="object",
               arguments_key="parameters"),
)  # fmt: skip


def tool_family(template: str, tag: str = "{") -> ToolFamily:
    """The family that `template` shows; `tag` is what a Go template told, for those unknown here."""
    for family in FAMILIES:
        if all(mark in template for mark in family.marks):
            return family
    tag = tag.strip()
    if tag in ("", "{", "["):
        form = "list" if tag == "[" else "object"
        return ToolFamily("generic", (), "", brackets=tag or "{", form=form)
    return ToolFamily("generic", (), tag)


def call_schema(family: ToolFamily, tools: Tools) -> bytes:
    """The JSON Schema of what a grammar demands between the family's tags."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, family.arguments_key: _schema_of(schema)},
            "required": ["name", family.arguments_key],
            "additionalProperties": False,
        }
        for name, schema in tools.parameters.items()
    ]
    call: dict[str, object] = {"anyOf": calls}
    if family.form == "list":
        call = {"type": "array", "items": call, "minItems": 1}
    return json.dumps(call).encode()


def _schema_of(parameters: object) -> object:
    return {"type": "object", **(parameters if isinstance(parameters, dict) else {})}
