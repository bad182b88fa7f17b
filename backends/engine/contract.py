"""What an engine is: one loaded model, driven by one thread, and what it says of itself."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import msgspec

from backends.types import GenerateRequest, Load, RequestId, TokenEvent
from converters.vision_artifact import VisionArtifact

if TYPE_CHECKING:  # it imports an image library, which engines need not
    from backends.vision.plan import Tower


class EngineCapabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What this engine can do with this model. The text side refuses the rest by name.

    `numbers` is the type that it computes in ("float16"), where the engine chooses one.
    `device_bytes`: what it may come to hold of a device's own memory, 0 on the CPU. `steps`: how
    a device runs its decode steps, in words for people. `image_width`: numbers of an `ImageSpan` for
    each position; 0 where the model takes no images, `images.ANY_WIDTH` where that does not matter.
    """

    context_length: int
    rows: int
    vocabulary: int
    generate: bool = True
    embed: bool = False
    grammar: bool = False
    adapters: bool = False
    reproducible_batches: bool = False
    device: str = "cpu"
    numbers: str = ""
    device_bytes: int = 0
    steps: str = ""
    image_width: int = 0


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`kv_bytes` are held by the active requests, `cached_bytes` by what is kept for later ones."""

    active: int
    waiting: int
    kv_bytes: int
    steps: int
    cached_bytes: int = 0


class Engine(Protocol):
    """One loaded model. Called only from the thread that loaded it.

    Promise, tested for every backend: a request that was added yields `Prefilled`* `Sampled`* and
    then exactly one `Finished` or `Failed`, also after `cancel` (reason `cancelled`).
    """

    @property
    def capabilities(self) -> EngineCapabilities: ...

    def add(self, request: GenerateRequest) -> None:
        """Queue it; never raises for what the request says, that becomes a `Failed` event."""
        ...

    def step(self) -> list[TokenEvent]:
        """One prefill chunk or one decode run over all active rows; [] when there is nothing to do."""
        ...

    def cancel(self, request_id: RequestId) -> None:
        """Frees the row at once; the closing event comes from the next `step`. Unknown ids: no-op."""
        ...

    def has_work(self) -> bool: ...

    def embed(self, batch: Sequence[tuple[int, ...]]) -> list[bytes]:
        """One float32 vector per input, as little-endian bytes, pooled but not normalised."""
        ...

    def status(self) -> EngineStatus: ...

    def close(self) -> None: ...


@runtime_checkable
class Rests(Protocol):
    """An engine that has something to do in pauses, such as writing its prefix cache to disk."""

    def rest(self) -> bool:
        """A few milliseconds of work that nobody waits for. False: nothing is left to do."""
        ...


class Backend(Protocol):
    """A runtime. `load` imports it; importing the backend's own package does not."""

    name: str
    target: str

    def load(self, load: Load) -> Engine: ...


@runtime_checkable
class LoadsTowers(Protocol):
    """A backend that runs vision towers too."""

    def load_tower(self, folder: pathlib.Path, artifact: VisionArtifact, load: Load) -> Tower:
        """Called on the thread that runs and closes it, not the engine's. Raises EngineError."""
        ...
