"""Images of requests, turned into vectors on a thread of their own, so that decoding ids never waits for them.

The thread starts with the first image, loads the tower, and owns it. Requests take turns image by image; the
same image is encoded once for all that want it. Posts one `ImagesReady` for each `encode` that is not
cancelled, and `ImageEncoded` before it.
"""

from __future__ import annotations

import logging
import pathlib
import threading
from collections.abc import Callable, Sequence

import msgspec

from backends.engine.contract import Backend, LoadsTowers
from backends.types import EngineError, Load, RequestId
from backends.vision.encode import encode_image
from backends.vision.plan import Tower
from backends.vision.sight import PlannedImage, Sight
from backends.vision.vector_cache import ImageVectors, VectorCache
from backends.worker.engine_thread import as_engine_error

_log = logging.getLogger(__name__)

CACHE_BYTES = 256 << 20


class ImageEncoded(msgspec.Struct, frozen=True):
    """One more image of this request is done."""

    request_id: RequestId


class ImagesReady(msgspec.Struct, frozen=True):
    """The vectors that the request waits for, by `PlannedImage.digest`, or why there are none."""

    request_id: RequestId
    vectors: dict[bytes, ImageVectors] | EngineError


class _Job(msgspec.Struct):
    """One request's images: those that are still to be encoded, in order, and the others' vectors."""

    missing: dict[bytes, PlannedImage]
    vectors: dict[bytes, ImageVectors]


class ImageEncoder:
    """`load_tower` is called on the thread. All methods are for the main thread and never block long."""

    def __init__(
        self,
        sight: Sight,
        load_tower: Callable[[], Tower],
        post: Callable[[ImageEncoded | ImagesReady], None],
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.moved = 0
        self._sight = sight
        self._load_tower = load_tower
        self._post = post
        self._thread: threading.Thread | None = None
        # What follows belongs to whoever holds the lock.
        self._changed = threading.Condition()
        self._cache = VectorCache(cache_bytes)
        self._jobs: dict[RequestId, _Job] = {}
        self._tower: Tower | None = None
        self._running: bytes | None = None
        self._is_interrupted = False
        self._is_closed = False

    @property
    def cached_bytes(self) -> int:
        return self._cache.held_bytes

    def encode(self, request_id: RequestId, images: Sequence[PlannedImage]) -> None:
        """An id that is known already is not given twice."""
        job = _Job({image.digest: image for image in images}, {})
        with self._changed:
            for digest in list(job.missing):
                if (known := self._cache.get(digest)) is not None:
                    job.vectors[digest] = known
                    del job.missing[digest]
            if job.missing:
                self._jobs[request_id] = job
                self._changed.notify()
        if not job.missing:
            self._post(ImagesReady(request_id, job.vectors))
        elif self._thread is None:
            # A daemon thread: a runtime stuck in native code must not keep the process alive.
            self._thread = threading.Thread(target=self._run, name="images", daemon=True)
            self._thread.start()

    def cancel(self, request_id: RequestId) -> None:
        """A run that nobody waits for any more is interrupted. Unknown ids: nothing happens."""
        with self._changed:
            self._jobs.pop(request_id, None)
            self._interrupt_if_unwanted()

    def close(self, timeout_seconds: float) -> bool:
        """True when the tower was closed in time, or never opened."""
        with self._changed:
            self._is_closed = True
            self._jobs.clear()
            self._interrupt_if_unwanted()
            self._changed.notify()
        if self._thread is None:
            return True
        self._thread.join(max(timeout_seconds, 0.0))
        return not self._thread.is_alive()

    def _interrupt_if_unwanted(self) -> None:
        """NOTE: under the lock, so that it meets no later image's run."""
        if self._running is not None and not self._is_wanted(self._running):
            self._is_interrupted = True
            if self._tower is not None:
                self._tower.interrupt()

    def _is_wanted(self, digest: bytes) -> bool:
        return any(digest in job.missing for job in self._jobs.values())

    # ---- on the thread ----

    def _run(self) -> None:
        while (image := self._next()) is not None:
            try:
                self._deliver(image.digest, self._encode(image))
            except (EngineError, MemoryError) as error:
                self._deliver(image.digest, as_engine_error(error, "internal"))
            except BaseException as error:  # noqa: BLE001  a panic in native code is no Exception
                _log.exception("%s", image.name)
                self._close_tower()  # what the runtime holds is unknown now
                self._deliver(image.digest, as_engine_error(error, "internal"))
        self._close_tower()

    def _next(self) -> PlannedImage | None:
        """Of the request whose turn it is; None: the end."""
        with self._changed:
            while not self._jobs and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                return None
            image = next(iter(next(iter(self._jobs.values())).missing.values()))
            self._running, self._is_interrupted = image.digest, False
            return image

    def _encode(self, image: PlannedImage) -> ImageVectors:
        def on_step() -> None:
            self.moved += 1
            with self._changed:
                if not self._is_wanted(image.digest):
                    raise EngineError("cancelled", "cancelled")

        tower = self._tower
        if tower is None:
            tower = self._load_tower()
            with self._changed:
                self._tower = tower
            on_step()
        return encode_image(image, self._sight, tower, on_step)

    def _deliver(self, digest: bytes, outcome: ImageVectors | EngineError) -> None:
        """To all requests that want it. Whoever came while it was interrupted has it encoded anew."""
        posts: list[ImageEncoded | ImagesReady] = []
        with self._changed:
            was_interrupted, self._running = self._is_interrupted, None
            if isinstance(outcome, EngineError):
                if not (was_interrupted and outcome.code == "cancelled"):
                    posts = self._fail(digest, outcome)
            else:
                self._cache.put(digest, outcome)
                posts = self._fill(digest, outcome)
        for message in posts:
            self._post(message)

    def _wanting(self, digest: bytes) -> list[RequestId]:
        return [request_id for request_id, job in self._jobs.items() if digest in job.missing]

    def _fail(self, digest: bytes, error: EngineError) -> list[ImageEncoded | ImagesReady]:
        failed: list[ImageEncoded | ImagesReady] = []
        for request_id in self._wanting(digest):
            name = self._jobs.pop(request_id).missing[digest].name
            message = str(error)
            if name not in message:
                message = f"{name}: {message}"
            failed.append(ImagesReady(request_id, EngineError(error.code, message)))
        return failed

    def _fill(self, digest: bytes, vectors: ImageVectors) -> list[ImageEncoded | ImagesReady]:
        posts: list[ImageEncoded | ImagesReady] = []
        for request_id in self._wanting(digest):
            job = self._jobs.pop(request_id)
            del job.missing[digest]
            job.vectors[digest] = vectors
            if job.missing:
                posts.append(ImageEncoded(request_id))
                self._jobs[request_id] = job  # behind the others now
            else:
                posts.append(ImagesReady(request_id, job.vectors))
        return posts

    def _close_tower(self) -> None:
        with self._changed:
            tower, self._tower = self._tower, None
        if tower is None:
            return
        try:
            tower.close()
        except Exception:  # noqa: BLE001  it is on its way out
            _log.exception("closing the vision tower failed")


def tower_loader(backend: Callable[[], Backend], sight: Sight, load: Load) -> Callable[[], Tower]:
    """For `ImageEncoder`: the tower of `load.projector` on the model's own runtime."""

    def load_tower() -> Tower:
        runtime = backend()
        if not isinstance(runtime, LoadsTowers):
            raise EngineError("unsupported", "this runtime has no vision towers")
        return runtime.load_tower(pathlib.Path(load.projector), sight.artifact, load)

    return load_tower
