"""What the files of a create request are: one of them the weights, others what belongs to them.

Files are told apart by what is in them. What this build cannot use is refused by the file's name.
"""

from __future__ import annotations

import pathlib
import posixpath

from converters.inspection import Inspection
from daemon.errors import Internal, Invalid, NotYet
from daemon.models import manifest as media
from daemon.models.blobs import Blobs
from daemon.models.manifest import Layer, parse_digest
from daemon.models.split_parts import Whole, wholes

_GGUF_MAGIC = b"GGUF"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_LAYER_TYPES = {"model": media.MODEL, "projector": media.PROJECTOR}


def split_refusal(file_name: str) -> str:
    return (
        f"{file_name} is one part of a split GGUF: give all parts, under the names they came with"
    )


def tensor_files(files: dict[str, str] | None) -> list[tuple[str, str]]:
    """(relative name, hex digest) of each where they are a folder of safetensors, else empty.

    Raises NotYet for pickled weights: reading them could run code.
    """
    listed = [
        (posixpath.normpath(name), parse_digest(digest)) for name, digest in (files or {}).items()
    ]
    names = [name for name, _ in listed]
    is_tensors = any(name.endswith(".safetensors") for name in names)
    for name in names if is_tensors or "config.json" in names else ():
        if name.lower().endswith(_PICKLED):
            raise NotYet(
                f"{name} holds pickled weights, which can run code when they are read: only"
                " safetensors and GGUF files are imported"
            )
    return listed if is_tensors else []


def uploaded(blobs: Blobs, listed: list[tuple[str, str]]) -> tuple[tuple[str, pathlib.Path], ...]:
    """(relative name, path) of each. Raises Internal for one that is not here."""
    found = tuple((name, blobs.path(digest)) for name, digest in listed)
    for _, path in found:
        if not path.is_file():
            raise Internal(f"open {path.name}: no such file or directory")
    return found


def named_files(files: dict[str, str] | None) -> list[Whole]:
    """Base names, and the hex digest of each or of all its parts, in order. Raises Invalid."""
    if files is None:
        raise Invalid("neither 'from' or 'files' was specified")
    if not files:
        raise Invalid("no files provided to convert")
    return wholes((path.rsplit("/", 1)[-1], parse_digest(digest)) for path, digest in files.items())


def file_size(path: pathlib.Path, file_name: str) -> int:
    """Bytes of an uploaded GGUF. Raises Invalid for another format, Internal when it is not here."""
    try:
        with path.open("rb") as file:
            size, magic = path.stat().st_size, file.read(len(_GGUF_MAGIC))
    except OSError:
        raise Internal(f"open {path.name}: no such file or directory") from None
    if magic != _GGUF_MAGIC:
        is_named = file_name.endswith(".gguf")
        raise Invalid("supplied file was not in GGUF format" if is_named else "unknown type")
    return size


def layer_for(file_name: str, digest: str, size: int, inspection: Inspection) -> Layer:
    """The layer that an inspected file becomes. Raises Invalid, NotYet by the file's name."""
    if inspection.kind not in _LAYER_TYPES:
        kind = inspection.kind
        raise NotYet(f"create from a {kind} ({file_name}) is not supported by this version yet")
    parts = inspection.metadata.get("split.count")
    if isinstance(parts, int) and parts > 1:
        raise Invalid(split_refusal(file_name))
    media_type = _LAYER_TYPES[inspection.kind]
    return Layer(media_type=media_type, digest=f"sha256:{digest}", size=size, source=file_name)


def weights_first(layers: list[Layer]) -> list[Layer]:
    """In the order of manifests. Raises Invalid, NotYet unless exactly one holds weights."""
    weights = [layer for layer in layers if layer.media_type == media.MODEL]
    if not weights:
        raise Invalid(
            "a projector alone is no model: give the weights that it is for too, or the model as FROM"
        )
    if len(weights) > 1:
        names = ", ".join(layer.source for layer in weights)
        raise Invalid(f"only one file can hold the model's weights: {names}")
    return weights + [layer for layer in layers if layer.media_type != media.MODEL]
