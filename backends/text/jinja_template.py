"""A GGUF's own chat template (Jinja), compiled once, rendered under limits. Main thread only.

Promise: whatever the template says, `render` gives a text of at most MAX_TEXT characters or raises
EngineError("template", …) naming the line, within twice the time limit.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Mapping

import jinja2

from backends.text.jinja_sandbox import MAX_TEXT, new_environment
from backends.text.render_guard import (
    RENDER_MEMORY_BYTES,
    RENDER_SECONDS,
    RenderLimit,
    render_guard,
)
from backends.types import EngineError

MAX_SOURCE = 1 << 20
_CACHE_ENTRIES = 16

_environment = new_environment()
_compiled: dict[str, jinja2.Template] = {}


def _line_of(error: BaseException, template: jinja2.Template | None) -> int | None:
    """The template's line that `error` came from; None where it has none.

    The library rewrites the traceback of an Exception to template lines, of a RenderLimit not.
    """
    if isinstance(error, jinja2.TemplateSyntaxError):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == "<template>" and frame.lineno]
    if not lines:
        return None
    if isinstance(error, RenderLimit):
        return template.get_corresponding_lineno(lines[-1]) if template else None
    return lines[-1]


def _refusal(error: BaseException, template: jinja2.Template | None) -> EngineError:
    line = _line_of(error, template)
    where = "" if line is None else f", line {line}"
    reason = str(error) or type(error).__name__
    return EngineError("template", f"chat template{where}: {reason}")


def _compile(source: str) -> jinja2.Template:
    key = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
    if key not in _compiled:
        while len(_compiled) >= _CACHE_ENTRIES:
            del _compiled[next(iter(_compiled))]
        _compiled[key] = _environment.from_string(source)
    return _compiled[key]


def _generate(template: jinja2.Template, variables: Mapping[str, object]) -> str:
    pieces: list[str] = []
    length = 0
    for piece in template.generate(**variables):
        length += len(piece)
        if length > MAX_TEXT:
            raise RenderLimit(f"it made more than {MAX_TEXT} characters")
        pieces.append(piece)
    return "".join(pieces)


def render(
    source: str, variables: Mapping[str, object], limit_seconds: float = RENDER_SECONDS
) -> str:
    """The prompt. Raises EngineError("template", …), never anything else."""
    if len(source) > MAX_SOURCE:
        raise EngineError("template", f"chat template: longer than {MAX_SOURCE} characters")
    template = None
    try:
        with render_guard(limit_seconds, RENDER_MEMORY_BYTES):
            template = _compile(source)
            return _generate(template, variables)
    except (RenderLimit, Exception) as error:
        raise _refusal(error, template) from error
