"""A vision tower on MLX: one module for all kinds, driven by the artifact's description.

Its arrays are evaluated when it is opened, so that any thread may use them; a run happens on the thread
that asks for it, with that thread's own stream, block by block: so memory stays bounded, others get their
turn on the device, and an interruption is seen soon.
"""

from __future__ import annotations

import logging
import pathlib
import threading
from collections.abc import Mapping

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from backends.mlx import device as devices
from backends.mlx.tower_form import BlockForm, PerceptronForm, StepForm, TowerForm, read_tower_form
from backends.mlx.tower_parts import (
    Piece,
    Rotation,
    TowerArrays,
    attend,
    bent,
    whole_pieces,
    window_pieces,
)
from backends.types import EngineError
from converters.artifact import MLX_WEIGHTS_FILE, ArtifactError
from converters.vision_artifact import VisionArtifact, read_vision

_NUMBERS = {"float16": mx.float16, "float32": mx.float32}
_log = logging.getLogger(__name__)
Inputs = Mapping[str, NDArray[np.generic]]


def open_tower(folder: pathlib.Path, *, device: str = "cpu", threads: int = 0) -> MlxTower:
    """On a `VisionArtifact`'s folder; MLX has its own say on `threads`.

    Raises EngineError: "load", "memory" or "unsupported".
    """
    try:
        artifact = read_vision(folder)
    except ArtifactError as error:
        raise EngineError("load", str(error)) from error
    devices.prepare_device(device)
    form = read_tower_form(folder)
    if artifact.has_row_break != bool(form.row_break) or artifact.deepstack != len(form.taps):
        raise EngineError("load", f"{folder.name}: config and vision artifact disagree")
    wanted = artifact.resident_bytes.get(device, artifact.file_bytes) + artifact.run_bytes
    if wanted > (available := devices.available_bytes()):
        raise EngineError(
            "memory",
            f"the vision tower takes {wanted / 1e9:.1f} GB, and {available / 1e9:.1f} GB are free",
        )
    # Like models: MLX's CPU kernels are far faster with fp32.
    numbers = mx.float32 if device == "cpu" else _NUMBERS[form.torch_dtype]
    return MlxTower(folder, artifact, form, numbers)


class MlxTower:
    """`Tower` of backends.vision.plan."""

    def __init__(
        self, folder: pathlib.Path, artifact: VisionArtifact, form: TowerForm, numbers: mx.Dtype
    ) -> None:
        self._folder = folder
        self._artifact = artifact
        self._form = form
        self._numbers = numbers
        self._is_interrupted = threading.Event()
        self._arrays: TowerArrays | None = _read(folder, form, numbers)
        self._row_break = (
            np.array(self._arrays[form.row_break].astype(mx.float32)) if form.row_break else None
        )

    @property
    def artifact(self) -> VisionArtifact:
        return self._artifact

    @property
    def row_break(self) -> NDArray[np.float32] | None:
        return self._row_break

    def run(self, inputs: Inputs) -> NDArray[np.float32]:
        """`embeddings` [N, L, W]. Raises EngineError: "cancelled" after `interrupt`, else "internal"."""
        self._is_interrupted.clear()
        found = self._run(inputs)
        if not np.isfinite(found).all() and self._numbers != mx.float32:
            _log.warning("computing images in float32: they overflow %s", self._numbers)
            self._numbers = mx.float32
            self._arrays = _read(self._folder, self._form, self._numbers)
            found = self._run(inputs)
        if not np.isfinite(found).all():
            raise EngineError("internal", "the vision tower gave numbers that are not finite")
        return found

    def _run(self, inputs: Inputs) -> NDArray[np.float32]:
        arrays = self._arrays
        if arrays is None:
            raise EngineError("internal", "the vision tower is closed")
        try:
            found = _Run(self._form, arrays, self._numbers, inputs, self._is_interrupted).vectors()
            return np.array(found.astype(mx.float32))
        except EngineError:
            raise
        except Exception as error:
            # The runtime raises several unrelated classes; this image failed, nothing else did.
            raise EngineError("internal", f"the vision tower's run failed: {error}") from error

    def interrupt(self) -> None:
        self._is_interrupted.set()

    def close(self) -> None:
        self._arrays = None


def _read(folder: pathlib.Path, form: TowerForm, numbers: mx.Dtype) -> TowerArrays:
    try:
        arrays = mx.load(str(folder / MLX_WEIGHTS_FILE))
    except (RuntimeError, ValueError) as error:
        raise EngineError("load", f"{folder.name}: the weights cannot be read: {error}") from error
    assert isinstance(arrays, dict)
    return TowerArrays(arrays, form.quantization, numbers)


class _Run:
    """One run: what all of its blocks share, and how far the data have come."""

    def __init__(
        self,
        form: TowerForm,
        arrays: TowerArrays,
        numbers: mx.Dtype,
        inputs: Inputs,
        is_interrupted: threading.Event,
    ) -> None:
        self._form = form
        self._arrays = arrays
        self._numbers = numbers
        self._inputs = inputs
        self._is_interrupted = is_interrupted
        self._rotation = self._given_rotation()
        tiles, patches = inputs["patches"].shape[:2]
        heads = max(block.attention.heads for block in form.blocks)
        self._whole = whole_pieces(tiles, heads, patches + bool(form.class_token))
        self._windows: list[Piece] = []
        if any(block.attention.is_windowed for block in form.blocks):
            self._windows = window_pieces(np.asarray(inputs["segments"], np.int64), heads)

    def _input(self, name: str) -> mx.array:
        return mx.array(np.asarray(self._inputs[name], np.float32)).astype(self._numbers)

    def _given_rotation(self) -> Rotation | None:
        if not self._form.rotation:
            return None
        is_of_neighbours = self._form.rotation == "neighbours"
        return Rotation(self._input("cos"), self._input("sin"), is_of_neighbours)

    def _computed(self, x: mx.array) -> mx.array:
        if self._is_interrupted.is_set():
            raise EngineError("cancelled", "the image's run was interrupted")
        mx.eval(x)
        return x

    def vectors(self) -> mx.array:
        """[N, L, W]."""
        form, arrays = self._form, self._arrays
        x = arrays.norm(form.first_norm, self._placed())
        taps = {tap.block: tap.steps for tap in form.taps}
        found: list[mx.array] = []
        for index, block in enumerate(form.blocks):
            x = self._computed(self._block(x, block))
            if index in taps:
                found.append(self._projected(x, taps[index]))
        x = arrays.norm(form.last_norm, x)
        if form.class_token:
            x = x[:, 1:]
        return self._computed(mx.concatenate([self._projected(x, form.steps), *found], axis=-1))

    def _placed(self) -> mx.array:
        """The patches' vectors, the class token in front, with what says where they are."""
        form, arrays, patches = self._form, self._arrays, self._input("patches")
        x = arrays.linear(form.patches[0], patches)
        for frame in form.patches[1:]:
            x = x + arrays.linear(frame, patches)
        if form.class_token:
            token = mx.broadcast_to(arrays[form.class_token], (x.shape[0], 1, x.shape[-1]))
            x = mx.concatenate([token, x], axis=1)
        if not form.places:
            return x
        return x + (self._mixed_places() if form.has_mixed_places else arrays[form.places])

    def _mixed_places(self) -> mx.array:
        table, weights = self._arrays[self._form.places], self._input("place_weights")
        ids = mx.array(np.asarray(self._inputs["place_ids"], np.int32))
        mixed = table[ids[:, 0]] * weights[:, :1]
        for place in range(1, ids.shape[1]):
            mixed = mixed + table[ids[:, place]] * weights[:, place : place + 1]
        return mixed

    def _block(self, x: mx.array, block: BlockForm) -> mx.array:
        arrays, attention = self._arrays, block.attention
        normed = arrays.norm(block.attention_norm, x)
        pieces = self._windows if attention.is_windowed else self._whole
        branch = attend(arrays, attention, normed, self._rotation, pieces, self._computed)
        x = x + self._scaled(branch, block.attention_scale)
        normed = arrays.norm(block.feed_forward_norm, x)
        branch = self._perceptron(normed, block.feed_forward)
        return x + self._scaled(branch, block.feed_forward_scale)

    def _scaled(self, branch: mx.array, name: str) -> mx.array:
        return branch * self._arrays[name] if name else branch

    def _perceptron(self, x: mx.array, network: PerceptronForm) -> mx.array:
        arrays = self._arrays
        inner = bent(network.activation, arrays.linear(network.gate or network.up, x))
        if network.gate:
            inner = inner * arrays.linear(network.up, x)
        return arrays.linear(network.down, inner)

    # ---- projector ----

    def _projected(self, x: mx.array, steps: tuple[StepForm, ...]) -> mx.array:
        for step in steps:
            x = self._step(x, step)
        return x

    def _step(self, x: mx.array, step: StepForm) -> mx.array:
        match step.kind:
            case "pool":
                return _cut(x, step).mean(axis=(2, 4)).reshape(x.shape[0], -1, x.shape[-1])
            case "shuffle":
                rows = (step.grid // step.side) ** 2
                return _cut(x, step).transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], rows, -1)
            case "group":
                return _grouped(x, step)
            case "bend":
                return bent(step.activation, x)
            case "norm":
                return self._arrays.norm(step.norm, x)
            case "turned":
                return x @ self._arrays[step.path]
            case "linear":
                return self._arrays.linear(step.path, x)


def _cut(x: mx.array, step: StepForm) -> mx.array:
    """[N, grid², E] → [N, grid / side, side, grid / side, side, E]."""
    parts = step.grid // step.side
    return x.reshape(x.shape[0], parts, step.side, parts, step.side, x.shape[-1])


def _grouped(x: mx.array, step: StepForm) -> mx.array:
    """[N, P, E] → [N, P / count, count · E]."""
    tiles, patches, width = x.shape
    if step.is_interleaved:
        x = x.reshape(tiles, patches // step.count, step.count, width).transpose(0, 1, 3, 2)
    return x.reshape(tiles, patches // step.count, step.count * width)
