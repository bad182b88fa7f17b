"""The other touch of mlx-lm: its modules take images, as vectors in the place of embeddings.

What its modules can be called with differs, so nothing is handed through them. Their blocks and rotations
get classes of their own, which ask what the run that is being built is given beside its ids: the first
block's input is changed behind every factor that embeddings are multiplied by, the first blocks' outputs
are added to, masks are opened, and angles are those of an image's rows and columns.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
from mlx import nn

from backends.types import EngineError

# Modules that make more of ids than one embedding: what they would make of an image's is unknown.
_MORE_OF_IDS = {
    "gemma3n": "an input of every block is looked up by id",
    "gemma4": "an input of every block is looked up by id",
    "gemma4_text": "an input of every block is looked up by id",
    "gpt2": "vectors of positions are added to embeddings",
    "gpt_bigcode": "vectors of positions are added to embeddings",
}
# Modules whose factor is for an image's vectors as well: llama.cpp has it so, and Hugging Face.
_COMMON_FACTORS = frozenset({"granite", "granitemoe", "granitemoehybrid"})
_MASK, _CACHE = "mask", "cache"
# Caches that say who sees whom; a state has seen what came before it, and nothing else.
_MASKED_KINDS = frozenset({"KVCache", "RotatingKVCache"})


class RunImages(NamedTuple):
    """What a run of one row of S ids is given, where any of them is an image's.

    `vectors` f32 [S, E] stand where `is_image` bool [S, 1]. `added`, f32 [S, E] each and zeros elsewhere,
    are added to what the first blocks give. Positions of one of `spans`, [begin, end), see each other.
    """

    vectors: mx.array
    is_image: mx.array
    added: tuple[mx.array, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()


class Angles(NamedTuple):
    """`cos` and `sin` f32 [S, pairs] of the ids of a run of one row."""

    cos: mx.array
    sin: mx.array


class _Given:
    """What blocks and rotations ask; of the run that is being built, on the thread that builds it."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.images: RunImages | None = None
        self.angles: Angles | None = None
        self.shifts: int | mx.array = 0


class ImageInputs:
    """One model's way to be given images. Raises EngineError("unsupported") where it has none.

    `is_sectioned`: ids behind images are rotated by positions that are not their places.
    """

    def __init__(self, model: nn.Module, config: Mapping[str, Any], *, is_sectioned: bool) -> None:
        model_type = str(config.get("model_type", ""))
        if reason := _MORE_OF_IDS.get(model_type):
            raise EngineError("unsupported", f"{model_type} takes no images on MLX yet: {reason}")
        multiplier = config.get("embedding_multiplier", 1.0)
        self._given = _Given(multiplier if model_type in _COMMON_FACTORS else 1.0)
        self._blocks: Any = getattr(model, "layers")  # noqa: B009 - no attribute of every module
        for place, block in enumerate(self._blocks):
            _take_over(block, _Block, self._given, place)
        if is_sectioned:
            self._take_over_rotations(model_type)

    def _take_over_rotations(self, model_type: str) -> None:
        rotations = [
            module.rope
            for block in self._blocks
            for _, module in block.named_modules()
            if isinstance(getattr(module, "rope", None), nn.Module)
        ]
        if not rotations or any(getattr(each, "traditional", False) for each in rotations):
            raise EngineError("unsupported", f"{model_type} cannot rotate by rows and columns here")
        for rotation in {id(each): each for each in rotations}.values():
            _take_over(rotation, _Rotation, self._given, 0)

    def can_open_masks(self, cache_kinds: Sequence[str]) -> bool:
        """Whether positions of a run may see later ones. `cache_kinds`: of all blocks."""
        takes_masks = all(_arguments(block) >= {_MASK, _CACHE} for block in self._blocks)
        return takes_masks and _MASKED_KINDS.issuperset(cache_kinds)

    @property
    def block_count(self) -> int:
        return len(self._blocks)

    @contextlib.contextmanager
    def giving(
        self,
        images: RunImages | None,
        angles: Angles | None = None,
        shifts: Sequence[int] = (),
    ) -> Iterator[None]:
        """While the model is called. `shifts`: for each row, position less place of its ids."""
        given = self._given
        given.images, given.angles = images, angles
        given.shifts = _as_offsets(shifts)
        try:
            yield
        finally:
            given.images, given.angles, given.shifts = None, None, 0


def _as_offsets(shifts: Sequence[int]) -> int | mx.array:
    if not any(shifts):
        return 0
    return shifts[0] if len(shifts) == 1 else mx.array(list(shifts))


def _take_over(module: nn.Module, behaviour: type, given: _Given, place: int) -> None:
    """Only its class changes: parameters, names and attributes are those of before."""
    kind = type(module)
    module.__class__ = type(kind.__name__, (behaviour, kind), {})
    module._given = given
    module._place = place


def _arguments(block: nn.Module) -> set[str]:
    kind = type(block).__mro__[2]
    return set(inspect.signature(kind.__call__).parameters)


class _Block:
    """A block that knows whether its run has images."""

    _given: _Given
    _place: int

    def __call__(self, x: mx.array, *arguments: Any, **named: Any) -> Any:
        run: Any = super().__call__  # pyright: ignore[reportAttributeAccessIssue]
        images = self._given.images
        if images is None:
            return run(x, *arguments, **named)
        if self._place == 0:
            vectors = images.vectors * self._given.factor
            x = mx.where(images.is_image, vectors.astype(x.dtype), x)
        if images.spans:
            bound = inspect.signature(run).bind(x, *arguments, **named)
            bound.arguments[_MASK] = _opened(bound.arguments, x.shape[1], images.spans)
            result = run(*bound.args, **bound.kwargs)
        else:
            result = run(x, *arguments, **named)
        if self._place < len(images.added):
            result = result + images.added[self._place].astype(result.dtype)
        return result


def _opened(
    arguments: Mapping[str, Any], count: int, spans: Sequence[tuple[int, int]]
) -> mx.array | None:
    """The mask of a block, [S, keys], with positions of one span seeing those behind them too.

    Windows still end what they see before them; no window ends what is behind, as in llama.cpp.
    """
    mask = arguments.get(_MASK)
    if not isinstance(mask, mx.array):
        mask = arguments[_CACHE].make_mask(count, return_array=True, window_size=None)
    if mask is None:  # a single id
        return None
    places = mx.arange(count)
    is_open = mx.zeros((count, count), mx.bool_)
    for begin, end in spans:
        inside = (places >= begin) & (places < end)
        is_open = is_open | (inside[:, None] & inside[None] & (places[None] > places[:, None]))
    return mask | mx.pad(is_open, [(0, 0), (mask.shape[-1] - count, 0)])


class _Rotation:
    """Turns pairs of halves by an image's angles where the run has some."""

    _given: _Given

    def __call__(self, x: mx.array, offset: int | mx.array = 0) -> mx.array:
        given = self._given
        if given.angles is not None:
            return _turned(x, given.angles)
        turn: Any = super().__call__  # pyright: ignore[reportAttributeAccessIssue]
        return turn(x, offset=offset + given.shifts)


def _turned(x: mx.array, angles: Angles) -> mx.array:
    """Of x [1, heads, S, head size] the first 2 · pairs numbers, the first half with the second."""
    pairs = angles.cos.shape[-1]
    wide = x[..., : 2 * pairs].astype(mx.float32)
    first, second = wide[..., :pairs], wide[..., pairs:]
    turned = mx.concatenate(
        [
            first * angles.cos - second * angles.sin,
            second * angles.cos + first * angles.sin,
        ],
        axis=-1,
    ).astype(x.dtype)
    return mx.concatenate([turned, x[..., 2 * pairs :]], axis=-1)
