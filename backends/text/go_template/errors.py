"""What a Go template can fail with. The text names the line and the reason, for the one who wrote it."""

from __future__ import annotations


class TemplateError(Exception):
    """The template, or its use with these values, is wrong."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"template: :{line}: {reason}")
        self.line = line
        self.reason = reason


class TemplateSyntaxError(TemplateError):
    """Found while reading the template; nothing was rendered."""


class TemplateLimit(TemplateError):
    """The template does too much: steps, output or depth over the bound."""
