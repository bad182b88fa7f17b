"""Which of a model's chat templates is used, and what it lets the model do: contract.md §8.6.

Templates are only looked at here, never rendered; `backends.text.template_facts` reads them.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache

import msgspec

from backends.text.template_facts import (
    TemplateFacts,
    check_go_template,
    go_facts,
    jinja_facts,
    prefers_jinja,
)
from converters.inspection import Inspection
from daemon.models.resolved import ResolvedModel

DEFAULT_TEMPLATE = "{{ .Prompt }}"
_GPT_OSS = ("gptoss", "gpt-oss")

# The same few texts are asked about with every request.
_go_facts = lru_cache(maxsize=64)(go_facts)
_jinja_facts = lru_cache(maxsize=64)(jinja_facts)


class TemplateChoice(msgspec.Struct, frozen=True):
    """`go_template` is what a `Chat` carries: "" when the artifact's own template, or none, is used.

    `text` is the chosen template, whichever it is; `capabilities` are of tools, thinking, insert.
    """

    text: str
    go_template: str
    capabilities: frozenset[str]


async def template_error(source: str) -> str:
    """What is wrong with a Go template that a client sent, with its line; "" for a good one."""
    # In a thread: the longest that is read at all takes half a second.
    return await asyncio.to_thread(check_go_template, source) if source else ""


def choose_template(model: ResolvedModel, inspection: Inspection | None) -> TemplateChoice:
    go_source = model.template
    jinja_source = inspection.chat_template if inspection else ""
    if jinja_source and not _keeps_go(model, go_source, jinja_source):
        return TemplateChoice(jinja_source, "", _jinja_facts(jinja_source).capabilities)
    if go_source:
        return TemplateChoice(go_source, go_source, _go_facts(go_source).capabilities)
    return TemplateChoice(DEFAULT_TEMPLATE, "", frozenset())


def _keeps_go(model: ResolvedModel, go_source: str, jinja_source: str) -> bool:
    if not go_source:
        return False
    if _is_harmony(model, go_source):
        return True
    go: TemplateFacts = _go_facts(go_source)
    return not prefers_jinja(go, _jinja_facts(jinja_source))


def _is_harmony(model: ResolvedModel, go_source: str) -> bool:
    is_family = model.config.model_family in _GPT_OSS
    return is_family and "<|start|>" in go_source and "<|end|>" in go_source
