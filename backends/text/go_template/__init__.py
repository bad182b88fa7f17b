"""Go's text/template language with the dialect that model templates are written in."""

from backends.text.go_template.dialect import GoTemplate, Thinking
from backends.text.go_template.errors import TemplateError, TemplateLimit, TemplateSyntaxError

__all__ = ["GoTemplate", "TemplateError", "TemplateLimit", "TemplateSyntaxError", "Thinking"]
