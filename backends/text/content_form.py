"""In which form a chat template wants the content of messages. Main thread only.

Most take text, or both; some that were written for images go over a list of parts and would lose plain
text without a word. As llama.cpp does it: such a template gets one part of text.
"""

from __future__ import annotations

from collections.abc import Mapping

from backends.text.jinja_template import render
from backends.types import EngineError

_PROBE = "hearthprobe"


def as_part(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def wants_parts(template: str, variables: Mapping[str, object]) -> bool:
    """Told from how it renders one message. `variables` are those beside the messages."""
    if "type" not in template:
        return False
    return not _shows(template, variables, _PROBE) and _shows(template, variables, as_part(_PROBE))


def _shows(template: str, variables: Mapping[str, object], content: object) -> bool:
    messages = [{"role": "user", "content": content}]
    try:
        return _PROBE in render(template, {**variables, "messages": messages})
    except EngineError:
        return False
