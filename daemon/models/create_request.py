"""What /api/create may ask for, and what of it is refused before anything is done.

The Struct is the wire's (contract.md §7.1); keys that this version does not know are ignored, keys
that a later version brings are refused by name.
"""

from __future__ import annotations

import math
import posixpath
import re
from typing import Any, cast

import msgspec

from daemon.errors import Invalid, NotYet
from daemon.models.manifest import StoredMessage, parse_digest
from daemon.models.name import ModelName, parse_name

_INFO_TEXTS = ("model_family", "base_name", "quantization_level", "parameter_size")
_INFO_COUNTS = ("context_length", "embedding_length")
_ROLES = ("system", "user", "assistant", "tool")
_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:")
_MAX_PARAMETERS = 1000


class CreateRequest(msgspec.Struct, frozen=True, kw_only=True, rename={"source": "from"}):
    """`insecure` is for the pull of a `from` that is not here.

    `files`, `adapters`, `draft_files` map relative file names to digests of uploaded blobs.
    """

    model: str = ""
    name: str = ""
    stream: bool | None = None
    insecure: bool = False
    source: str = ""
    files: dict[str, str] | None = None
    adapters: dict[str, str] | None = None
    draft_files: dict[str, str] | None = None
    template: str = ""
    system: str = ""
    license: str | list[str] | None = None
    parameters: dict[str, Any] | None = None
    messages: list[StoredMessage] | None = None
    quantize: str = ""
    quantization: str = ""
    draft_quantize: str = ""
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    remote_host: str = ""
    info: dict[str, Any] | None = None

    @property
    def licenses(self) -> list[str]:
        given = self.license or []
        return [text for text in ([given] if isinstance(given, str) else given) if text]


class CreateStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of progress; `total` and `completed` are bytes."""

    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """The `info` field, checked."""

    capabilities: tuple[str, ...] = ()
    model_family: str = ""
    base_name: str = ""
    quantization_level: str = ""
    parameter_size: str = ""
    context_length: int = 0
    embedding_length: int = 0


def check_before_stream(request: CreateRequest) -> ModelName:
    """What is a 400 whether or not the client streams; the target's name. Raises Invalid."""
    name = parse_name(request.model or request.name)
    for files in (request.files, request.adapters, request.draft_files):
        for path, digest in (files or {}).items():
            if not _is_contained(path):
                raise Invalid("file path must be relative")
            parse_digest(digest)
    if request.draft_quantize and not request.draft_files:
        raise Invalid("--draft-quantize requires a DRAFT model")
    return name


def check_supported(request: CreateRequest) -> None:
    """Raises NotYet naming the field that a later version brings."""
    later = {
        "draft_files": request.draft_files,
        "draft_quantize": request.draft_quantize,
        "remote_host": request.remote_host,
    }
    for field, value in later.items():
        if value:
            raise NotYet(f"create with '{field}' is not supported by this version yet")


def _is_contained(path: str) -> bool:
    """A relative path that stays below its root on every system."""
    if not path or path.startswith("/") or "\\" in path or "\0" in path:
        return False
    if _WINDOWS_DRIVE.match(path):
        return False
    return not posixpath.normpath(path).startswith("..")


def checked_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """Without nulls. Raises Invalid for what no option can be: objects, nested lists, NaN."""
    if len(parameters) > _MAX_PARAMETERS:
        raise Invalid(f"more than {_MAX_PARAMETERS} parameters")
    kept = {key: value for key, value in parameters.items() if value is not None}
    for key, value in kept.items():
        items = cast("list[object]", value) if isinstance(value, list) else [value]
        if not all(_is_scalar(item) for item in items):
            raise Invalid(f"parameter '{key}' must be a number, a string, a boolean or a list")
    return kept


def _is_scalar(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | int | bool)


def checked_messages(messages: list[StoredMessage]) -> tuple[StoredMessage, ...]:
    """Roles in lower case. Raises Invalid for one that no template knows."""
    for message in messages:
        if message.role.lower() not in _ROLES:
            raise Invalid(f"message role must be one of {', '.join(_ROLES)}")
    return tuple(msgspec.structs.replace(m, role=m.role.lower()) for m in messages)


def checked_info(info: dict[str, Any]) -> Info:
    """Raises Invalid naming the key of a wrong type; unknown keys are ignored."""
    fields: dict[str, Any] = {}
    for key in _INFO_TEXTS:
        if (value := info.get(key)) is not None:
            if not isinstance(value, str):
                raise Invalid(f'info field "{key}" must be a string')
            fields[key] = value
    for key in _INFO_COUNTS:
        if (value := info.get(key)) is not None:
            fields[key] = _count(key, value)
    capabilities: object = info.get("capabilities") or []
    try:
        fields["capabilities"] = msgspec.convert(capabilities, tuple[str, ...])
    except msgspec.ValidationError:
        raise Invalid('info field "capabilities" must be a list of strings') from None
    return Info(**fields)


def _count(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Invalid(f'info field "{key}" must be a number')
    if not math.isfinite(value) or value < 0 or int(value) != value:
        raise Invalid(f'info field "{key}" must be a non-negative integer')
    return int(value)
