"""What `format` and `required_tools` demand of an answer, around the thoughts before it. Pure.

The rules are Lark text for `backends.engine.grammar`: thoughts are free until their closing tag, the
answer behind them is the document, and where tools were given it may be calls instead. Where calls
are required it is calls and nothing else.
"""

from __future__ import annotations

import json

import msgspec

from backends.engine.grammar import GrammarSpec
from backends.text.markup import Markup
from backends.text.tokenizer import Tokenizer
from backends.text.tool_families import ToolFamily, call_schema
from backends.text.tools import Tools
from backends.types import EngineError

_ANY_OBJECT = b'{"type":"object"}'
_SPACES = "SPACES: /[ \\n\\r\\t]{1,8}/\n"
_FREE = "FREE: /(.|\\n)*/\n"


def answer_grammar(
    wanted: bytes | None, markup: Markup, tokenizer: Tokenizer, required: tuple[str, ...] = ()
) -> GrammarSpec:
    """`wanted` is `"json"` or a JSON Schema; with `required` it is not looked at.

    Raises EngineError("invalid").
    """
    schemas: list[tuple[str, bytes]] = []
    if not required:
        schemas.append(("document", _schema(wanted or b"")))
    start, rules = "@document", ""
    if required or markup.family is not None:
        family = _family(
            markup, "a required tool call" if required else "format together with tools"
        )
        start = "calls" if required else "(@document | calls)"
        rules += _call_rules(family, tokenizer)
        tools = _only(markup.tools, required) if required else markup.tools
        schemas.append(("call", call_schema(family, tools)))
    if markup.is_harmony:
        start, rules = _harmony_rules(start, markup, tokenizer)
    elif markup.thinking_tags is not None:
        thought = "thought" if markup.starts_inside else "thought?"
        start, rules = f"{thought} {start}", rules + _thought_rules(markup, tokenizer)
    text = f"start: {start}\n{rules}{_SPACES if 'SPACES' in rules else ''}"
    return GrammarSpec(rules=text, schemas=tuple(schemas), closings=_closings(markup, tokenizer))


def _family(markup: Markup, what: str) -> ToolFamily:
    """The family of calls, if a grammar can describe them. Raises EngineError("invalid")."""
    family = markup.family
    if family is None:
        raise EngineError("invalid", f"{what} needs tools")
    if markup.is_harmony or not family.form:
        name = "harmony" if markup.is_harmony else family.name
        raise EngineError("invalid", f"{what} is not supported for calls in the form of {name!r}")
    return family


def _only(tools: Tools, names: tuple[str, ...]) -> Tools:
    for name in names:
        if name not in tools.parameters:
            raise EngineError("invalid", f"a required tool call needs the tool {name!r}")
    return Tools({name: tools.parameters[name] for name in names})


def _closings(markup: Markup, tokenizer: Tokenizer) -> tuple[str | int, ...]:
    """What ends thoughts, for an answer that must come to its document in time."""
    if markup.is_harmony:
        text = "<|end|>"
    elif markup.thinking_tags is not None:
        text = markup.thinking_tags[1]
    else:
        return ()
    token_id = tokenizer.special_id(text)
    return (text if token_id is None else token_id,)


def _schema(wanted: bytes) -> bytes:
    try:
        value = msgspec.json.decode(wanted)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise EngineError("invalid", f"format is no JSON: {error}") from error
    if value == "json":
        return _ANY_OBJECT
    if not isinstance(value, dict):
        raise EngineError("invalid", 'format must be "json" or a JSON Schema object')
    return wanted


def _call_rules(family: ToolFamily, tokenizer: Tokenizer) -> str:
    """Calls between tags may follow each other; a call without tags is the whole answer."""
    opening = literal(family.opening, tokenizer)
    if family.brackets:
        tag = f"({opening} SPACES?)? " if opening else ""
        return f"calls: {tag}@call\n"
    closing = literal(family.closing, tokenizer)
    end = f" SPACES? {closing} SPACES?" if closing else ""
    repeat = "+" if closing else ""
    return f"calls: one_call{repeat}\none_call: {opening} SPACES? @call{end}\n"


def _thought_rules(markup: Markup, tokenizer: Tokenizer) -> str:
    opening, closing = markup.thinking_tags or ("", "")
    before = "" if markup.starts_inside else f"SPACES? {literal(opening, tokenizer)} "
    return f"thought: {before}thinking SPACES?\n{_until(closing, tokenizer)}"


def _until(closing: str, tokenizer: Tokenizer) -> str:
    """A rule `thinking`: any text up to and with `closing`, which may be an id of its own."""
    if tokenizer.special_id(closing) is not None:
        return f"thinking: FREE? {literal(closing, tokenizer)}\n{_FREE}"
    return f"thinking[suffix={_quoted(closing)}]: /(.|\\n)*/\n"


def _harmony_rules(start: str, markup: Markup, tokenizer: Tokenizer) -> tuple[str, str]:
    """Analysis messages, then the final one with the document in it."""
    final = literal("<|channel|>final<|message|>", tokenizer)
    analysis = literal("<|channel|>analysis<|message|>", tokenizer)
    again = literal("<|start|>assistant", tokenizer)
    rules = f"analysis: {analysis} thinking {again}\n{_until('<|end|>', tokenizer)}"
    return f"analysis* {final} {start}", rules


def literal(text: str, tokenizer: Tokenizer) -> str:
    """`text` in Lark: special ids as ids, the rest in quotes."""
    parts = tokenizer.cut_at_special(text)
    ids = [tokenizer.special_id(part) for part in parts]
    return " ".join(
        _quoted(part) if token_id is None else f"<[{token_id}]>"
        for part, token_id in zip(parts, ids, strict=True)
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
