"""Whose API a path belongs to. Pure."""

from __future__ import annotations

from typing import Literal

Dialect = Literal["ollama", "openai", "anthropic", "hearth", "other"]


def dialect_of(path: str) -> Dialect:
    """Of a path or the template of a route; our own routes are "hearth", what is no path is "other"."""
    if not path.startswith("/"):
        return "other"
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return "anthropic"
    if path.startswith("/v1/") or path == "/rerank":  # clients know that one without /v1 as well
        return "openai"
    is_ollama = path == "/" or (path.startswith("/api/") and not path.startswith("/api/hearth/"))
    return "ollama" if is_ollama else "hearth"
