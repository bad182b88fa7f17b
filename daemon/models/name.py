"""Model names: the one grammar that requests, manifests on disk and answers share.

`[scheme://][host/][namespace/]model[:tag]`, contract.md §4.1-4.3. A `ModelName` that exists is
valid, so its parts are safe as folder names: none is empty, starts with a dot or holds a slash.
"""

from __future__ import annotations

import re

import msgspec

from daemon.errors import Invalid

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"
# Longer than every valid name with its scheme; what is longer is not even looked at.
_MAX_TEXT = 1024

_PARTS = {
    "host": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-.:]{0,349}"),
    "namespace": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]{0,79}"),
    "model": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-.]{0,79}"),
    "tag": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-.]{0,79}"),
}


class InvalidName(Invalid):
    """Not a model name. Routes that have their own text for it catch this class."""


class ModelName(msgspec.Struct, frozen=True, order=True):
    """Four parts, spelled as given. Equality is literal; `same_as` ignores case, as lookups do."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def parts(self) -> tuple[str, str, str, str]:
        """The folders of the manifest below `manifests/`, the last one being the file."""
        return self.host, self.namespace, self.model, self.tag

    @property
    def short(self) -> str:
        """As answers show it: without a default host, without a default namespace behind one."""
        if self.host.casefold() != DEFAULT_HOST:
            return self.full
        if self.namespace.casefold() != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{self.model}:{self.tag}"
        return f"{self.model}:{self.tag}"

    @property
    def full(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    def same_as(self, other: ModelName) -> bool:
        return self.full.casefold() == other.full.casefold()

    def __str__(self) -> str:
        return self.short


def parse_name(text: str) -> ModelName:
    """The name with its defaults filled in. Raises InvalidName."""
    rest = text.strip()
    if len(rest) > _MAX_TEXT:
        raise InvalidName("invalid model name")
    rest = _without_local(rest, text)
    if "://" in rest:
        rest = rest.split("://", 1)[1]
    tag = DEFAULT_TAG
    if rest.rfind(":") > rest.rfind("/"):
        rest, tag = rest.rsplit(":", 1)
    pieces = rest.rsplit("/", 2)
    model = pieces.pop()
    namespace = pieces.pop() if pieces else DEFAULT_NAMESPACE
    host = pieces.pop() if pieces else DEFAULT_HOST
    return name_from_parts((host, namespace, model, tag))


def name_from_parts(parts: tuple[str, ...]) -> ModelName:
    """A name from (host, namespace, model, tag). Raises InvalidName unless each part is valid."""
    if len(parts) != len(_PARTS):
        raise InvalidName("invalid model name")
    for pattern, part in zip(_PARTS.values(), parts, strict=True):
        if not pattern.fullmatch(part):
            raise InvalidName("invalid model name")
    return ModelName(*parts)


def _without_local(rest: str, asked: str) -> str:
    """`:local` only says that no cloud is meant, which is all there is here; it is dropped."""
    if not rest.casefold().endswith(":local"):
        return rest
    bare = rest[: -len(":local")]
    if is_cloud_reference(bare):
        raise InvalidName(f'use either :local or :cloud, not both: "{asked.strip()}"')
    return bare


def is_cloud_reference(text: str) -> bool:
    """Whether `text` asks for a model on somebody else's computers: `x:cloud`, `x:8b-cloud`."""
    name = text.strip().casefold()
    suffix = name.rsplit(":", 1)[1] if name.rfind(":") > name.rfind("/") else ""
    return suffix == "cloud" or suffix.endswith("-cloud")
