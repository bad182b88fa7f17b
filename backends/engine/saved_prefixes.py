"""What finished requests leave behind, written to disk in pauses and found again where that pays.

A pause writes one block at a time, so that a request that comes meanwhile waits for no disk but for
the end of that block; what is used again before it was written is not written.
"""

from __future__ import annotations

import logging
import math
import pathlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from backends.engine.fingerprint import runtime_fingerprint
from backends.engine.prefix_files import Found, PrefixFiles
from backends.engine.prefix_format import (
    BLOCK_POSITIONS,
    LEAST_IDS,
    PIECE_BYTES,
    PrefixForm,
    PrefixWriter,
)
from backends.engine.prefix_index import Prefix
from backends.types import Load
from converters.artifact import Artifact

logger = logging.getLogger(__name__)

# Reading that nobody who decodes will notice.
UNNOTICED_SECONDS = 0.1
_K_contra = TypeVar("_K_contra", contravariant=True)
K = TypeVar("K", bound=Hashable)


class Holder(Protocol[_K_contra]):
    """The memory that keys, values and states are in."""

    def form_of(self, key: _K_contra) -> PrefixForm: ...

    def read_block(self, key: _K_contra, begin: int, end: int) -> bytes:
        """Positions `begin` to `end` of everything that can be cut by position."""
        ...

    def read_whole(self, key: _K_contra, begin: int, end: int) -> bytes:
        """Bytes `begin` to `end` of what cannot be cut."""
        ...


class _Waiting(NamedTuple):
    prefix: Prefix
    exact_length: int


class SavedPrefixes(Generic[K]):
    """`seconds_per_id` is what prefilling one id takes, 0 while that is not known."""

    def __init__(
        self, holder: Holder[K], files: PrefixFiles, seconds_per_id: Callable[[], float]
    ) -> None:
        self._holder = holder
        self._files = files
        self._seconds_per_id = seconds_per_id
        self._waiting: dict[K, _Waiting] = {}
        self._writing: tuple[K, PrefixWriter] | None = None

    # ---- writing ----

    def note(self, key: K, prefix: Prefix, exact_length: int) -> None:
        """What is idle under `key` holds all of `prefix`: a later pause may write it.

        Images are left out: the files' folder says nothing of the tower that made their vectors.
        """
        if len(prefix.ids) >= LEAST_IDS and min(prefix.ids) >= 0:
            self._waiting[key] = _Waiting(prefix, exact_length)

    def forget(self, key: K) -> None:
        """What `key` holds is about to change, or gone."""
        self._waiting.pop(key, None)
        if self._writing is not None and self._writing[0] == key:
            self._writing[1].abandon()
            self._writing = None

    def rest(self) -> bool:
        """Writes a block. False: there is nothing to write."""
        try:
            if self._writing is None:
                self._begin()
            if self._writing is None:
                return False
            self._write(*self._writing)
        except OSError as error:
            logger.warning("the prefix cache cannot be written: %s", error)
            self.close()
            return False
        return True

    def _begin(self) -> None:
        while self._waiting and self._writing is None and self._seconds_per_id() > 0:
            key, (prefix, exact_length) = self._waiting.popitem()
            if self._files.has(prefix):
                continue
            seconds = self._seconds_per_id() * len(prefix.ids)
            form = self._holder.form_of(key)
            writer = self._files.begin(prefix, exact_length, seconds, form)
            self._writing = (key, writer) if writer else None

    def _write(self, key: K, writer: PrefixWriter) -> None:
        length, begin = len(writer.saved.ids), writer.written
        if begin < length:
            end = min(begin + BLOCK_POSITIONS, length)
            writer.add(self._holder.read_block(key, begin, end))
        else:
            begin = writer.written_whole
            end = min(begin + PIECE_BYTES, writer.saved.form.whole_bytes)
            writer.add(self._holder.read_whole(key, begin, end))
        if writer.is_complete:
            self._writing = None
            writer.finish()
            self._files.add(writer)

    def close(self) -> None:
        if self._writing is not None:
            self._writing[1].abandon()
        self._writing = None
        self._waiting.clear()

    # ---- reading ----

    def find(
        self, prefix: Prefix, *, most: int, held: int, exact: bool, is_quiet: bool
    ) -> Found | None:
        """What is worth reading. While others are at work, only what they will not notice."""
        seconds = math.inf if is_quiet else UNNOTICED_SECONDS
        return self._files.best(prefix, most=most, held=held, exact=exact, most_seconds=seconds)

    def read(self, found: Found) -> Iterator[bytes]:
        """Its blocks, then the pieces of what cannot be cut. Raises DamagedPrefix."""
        return self._files.read(found)


def open_files(
    load: Load,
    artifact: Artifact,
    *,
    context_length: int,
    runtime: Sequence[object],
    knows: Callable[[PrefixForm], bool],
    exact_step: int = 1,
) -> PrefixFiles | None:
    """None unless asked for; a disk that does not play along costs the cache, not the model.

    `context_length` is the worker's own; `runtime`: what else decides which numbers come out.
    """
    if not (load.prefix_cache_bytes and load.cache_folder):
        return None
    root = pathlib.Path(load.cache_folder)
    fingerprint = runtime_fingerprint(load, artifact, context_length, runtime)
    folder = root / artifact.source / fingerprint / "prefixes"
    try:
        return PrefixFiles(
            root,
            folder,
            quota_bytes=load.prefix_cache_bytes,
            knows=knows,
            exact_step=exact_step,
        )
    except OSError as error:
        logger.warning("the prefix cache on disk cannot be used: %s", error)
        return None
