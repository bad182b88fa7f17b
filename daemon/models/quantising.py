"""Smaller weights for a model that is being created: checked, quantised by a converter, made a blob.

The converter writes into a folder of its own inside the store, so that its file becomes a blob by a
link; what is stored is hashed here, not believed. The model that it was made from stays as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import secrets
import shutil
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence

from converters.artifact import MADE_GGUF, QUANTISED_TYPES
from converters.inspection import Inspection
from daemon.errors import Internal
from daemon.models.converter_process import sweep_staging
from daemon.models.create_request import CreateStatus
from daemon.models.importing import notes, require_gguf
from daemon.models.jobs import ConversionProgress, Conversions, Wanted
from daemon.models.store import Store
from daemon.models.taking_in import take_in

_FOLDER = ".hearth-quantising"
_ALIASES = {"Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_FLOATS = ("F16", "BF16", "F32")
_INTEGERS = ("I8", "I16", "I32", "I64")
# The field's clients expect a digest while the real one is not known yet.
_NO_DIGEST = "0" * 19
_ABANDONED_SECONDS = 3600.0


def checked_type(asked: str) -> str:
    """The file type that is meant, "" for none. Raises Internal: clients know it as a 500."""
    wanted = _ALIASES.get(asked.upper(), asked.upper())
    if wanted and wanted not in QUANTISED_TYPES:
        known = ", ".join(QUANTISED_TYPES)
        raise Internal(f"unsupported quantization type {asked} - supported types are {known}")
    return wanted


def float_type(inspection: Inspection) -> str:
    """What most weights are stored in. Raises Internal when any are quantised already."""
    counts = Counter[str]()
    for tensor in inspection.tensors:
        elements = 1
        for dimension in tensor.shape:
            elements *= dimension
        counts[tensor.type] += elements
    for integers in _INTEGERS:
        del counts[integers]
    if not counts or not set(counts) <= set(_FLOATS):
        raise Internal("quantization is only supported for F16, BF16 and F32 models")
    return counts.most_common(1)[0][0]


async def quantised(
    store: Store,
    conversions: Conversions,
    source: Inspection,
    file_type: str,
    tell_digest: Callable[[str], object],
) -> AsyncGenerator[CreateStatus]:
    """Makes a quantised copy of a blob a blob; its hex digest is told before the stream ends.

    Waits its turn among conversions. Closing the stream early leaves nothing. Raises Invalid, NotYet,
    NoSpace, LoadFailed, Busy, StoreReadOnly.
    """
    store.require_writable()
    folder = store.root.absolute() / _FOLDER / secrets.token_hex(8)
    level, input_path = float_type(source), store.blobs.path(source.digest)
    wanted = Wanted(
        source=source.digest,
        folder=folder / file_type,
        arguments=("quantise", "--input", str(input_path), "--type", file_type),
        read=require_gguf,
    )
    try:
        async with contextlib.aclosing(conversions.ensure(wanted)) as steps:
            async for step in steps:
                yield _status(step, level, file_type)
        for note in await asyncio.to_thread(notes, wanted.folder):
            yield CreateStatus(status=f"note: {note}")
        file = wanted.folder / MADE_GGUF
        async with contextlib.aclosing(take_in(store, file, tell_digest)) as taking:
            async for status in taking:
                yield CreateStatus(
                    status="verifying conversion", total=status.total, completed=status.completed
                )
    finally:
        await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))


def _status(step: ConversionProgress, level: str, file_type: str) -> CreateStatus:
    if step.phase == "queued":
        return CreateStatus(status="waiting for another conversion")
    return CreateStatus(
        status=f"quantizing {level} model to {file_type}",
        digest=_NO_DIGEST,
        total=step.total,
        completed=step.done,
    )


@contextlib.asynccontextmanager
async def kept_if_used(store: Store, made: Sequence[str]) -> AsyncGenerator[None]:
    """What was made (hex) in the meantime and no manifest mentions in the end is removed again."""
    try:
        yield
    finally:
        if made:
            await asyncio.shield(asyncio.to_thread(_collect, store, made))


def _collect(store: Store, made: Sequence[str]) -> None:
    with store.exclusive():
        store.collect(made)


async def sweep_quantising(store: Store) -> None:
    """At start: removes what a daemon that was killed left; another's that still works is kept."""
    if store.is_writable:
        await asyncio.to_thread(_sweep, store.root / _FOLDER)


def _sweep(root: pathlib.Path) -> None:
    sweep_staging(root)
    for folder in root.glob("*"):
        with contextlib.suppress(OSError):
            is_idle = not any(".staging-" in path.name for path in folder.iterdir())
            if is_idle and folder.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        root.rmdir()
