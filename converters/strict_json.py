"""JSON from a stranger: a key twice or a nesting too deep is an error, not a surprise."""

from __future__ import annotations

import json
from typing import Any

from converters.errors import MalformedFile


def parse_json(text: str, name: str) -> Any:
    """Raises MalformedFile, naming the file, where it is not JSON or has a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise MalformedFile(f"{name} is nested too deeply") from None
    except ValueError as error:
        raise MalformedFile(f"{name} is not readable: {error}") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name[:80]!r} appears twice")
        found[name] = value
    return found
