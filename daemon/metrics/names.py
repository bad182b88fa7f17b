"""Values of labels, bounded: what a scraper keeps a series for must not grow with what people do."""

from __future__ import annotations

MOST_NAMES = 64
OTHER = "other"


class BoundedNames:
    """The first `most` different names are themselves, all later ones `other`, for ever."""

    def __init__(self, most: int = MOST_NAMES) -> None:
        self._most = most
        self._known: set[str] = set()

    def label(self, name: str) -> str:
        if name in self._known:
            return name
        if len(self._known) >= self._most:
            return OTHER
        self._known.add(name)
        return name
