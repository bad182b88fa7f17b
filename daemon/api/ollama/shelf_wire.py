"""What the routes about the shelf and the memory read and write: contract.md §1.10-1.13, 4.4-4.6."""

from __future__ import annotations

from typing import Any

import msgspec


class NamedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`name` is the old spelling of `model`."""

    model: str = ""
    name: str = ""

    @property
    def asked(self) -> str:
        return self.model or self.name


class ShowRequest(NamedRequest, frozen=True, kw_only=True):
    """`system` and `options` change the shown Modelfile only; `template` is ignored."""

    verbose: bool = False
    system: str = ""
    options: dict[str, Any] | None = None


class CopyRequest(msgspec.Struct, frozen=True, kw_only=True):
    source: str = ""
    destination: str = ""


class ImportRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Hearth's own: `path` is a file or folder of the machine that the daemon runs on.

    `optimum`: an encoder without a recipe here is exported to ONNX first.
    """

    path: str = ""
    model: str = ""
    optimum: bool = False
    stream: bool | None = None
