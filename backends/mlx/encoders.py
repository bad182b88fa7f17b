"""Models that give vectors, on MLX: padded batches of whole texts, one run each, no cache.

The artifact's config says block by block what is computed (`converters.targets.mlx.models.encoder`);
a norm or a bias without an array is not there. Self-contained: mlx-lm has no encoders.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence

import mlx.core as mx
import msgspec
import numpy as np
from mlx import nn

from backends.engine.texts import MAX_RUN_IDS, plan_runs
from backends.types import EngineError
from converters.artifact import (
    MLX_CONFIG_FILE,
    MLX_WEIGHTS_FILE,
    Artifact,
    RopeTable,
    read_artifact,
)

MODEL_TYPE = "hearth_encoder"
# Added to scores that must not count: far below any real one, and finite in fp16. Were it infinite, an
# id of padding that sees nothing would turn into no number, and no number times 0 is none either.
MASKED = -6e4


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """How a module's codes are packed; mlx-lm's `quantization` entries."""

    group_size: int
    bits: int
    mode: str = "affine"


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """As in converters.architectures: what no array says."""

    heads: int
    kv_heads: int
    head_size: int
    scale: float
    rope: str
    interleaved: bool
    window: int
    alibi_bias: float
    activation: str
    is_up_fused: bool
    residual_scale: float
    experts_used: int = 0


class EncoderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`config.json` of an artifact of this kind; other keys are not read."""

    model_type: str
    rms_norm_eps: float
    embedding_scale: float
    is_causal: bool
    pooling: str
    is_centered: bool
    projections: int
    has_tanh: bool
    ends_in_tanh: bool
    has_softmax: bool
    blocks: tuple[Block, ...]
    quantization: dict[str, Form | int | str] = {}


def load_encoder(folder: pathlib.Path, numbers: mx.Dtype | None = None) -> MlxEncoder:
    """`numbers` to compute in; None: as stored. Raises EngineError("load")."""
    artifact = read_artifact(folder)
    try:
        config = msgspec.json.decode((folder / MLX_CONFIG_FILE).read_bytes(), type=EncoderConfig)
        arrays = mx.load(str(folder / MLX_WEIGHTS_FILE))
    except (OSError, RuntimeError, ValueError) as error:
        raise EngineError("load", f"{folder.name}: not an encoder for MLX ({error})") from error
    if config.model_type != MODEL_TYPE or not isinstance(arrays, dict):
        raise EngineError("load", f"{folder.name}: {config.model_type!r} is no encoder")
    if numbers is not None:
        arrays = {name: _cast(array, numbers) for name, array in arrays.items()}
    mx.eval(list(arrays.values()))
    return MlxEncoder(_Arrays(arrays, config), config, artifact)


def _cast(array: mx.array, numbers: mx.Dtype) -> mx.array:
    return array.astype(numbers) if mx.issubdtype(array.dtype, mx.floating) else array


class _Arrays:
    """The artifact's arrays by module."""

    def __init__(self, arrays: dict[str, mx.array], config: EncoderConfig) -> None:
        self._arrays = arrays
        self._config = config
        forms = config.quantization.items()
        self._forms = {path: form for path, form in forms if isinstance(form, Form)}

    def has(self, path: str) -> bool:
        return f"{path}.weight" in self._arrays

    def rows(self, path: str, ids: mx.array | slice) -> mx.array:
        """Rows of a table, decoded."""
        weight = self._arrays[f"{path}.weight"][ids]
        form = self._forms.get(path)
        if form is None:
            return weight
        scales, biases = self._coded(path)
        return mx.dequantize(
            weight,
            scales[ids],
            None if biases is None else biases[ids],
            group_size=form.group_size,
            bits=form.bits,
            mode=form.mode,
        )

    def linear(self, path: str, x: mx.array) -> mx.array:
        weight, form = self._arrays[f"{path}.weight"], self._forms.get(path)
        if form is None:
            x = x @ weight.T
        else:
            scales, biases = self._coded(path)
            x = mx.quantized_matmul(
                x,
                weight,
                scales,
                biases,
                group_size=form.group_size,
                bits=form.bits,
                mode=form.mode,
            )
        bias = self._arrays.get(f"{path}.bias")
        return x if bias is None else x + bias

    def experts(self, path: str, x: mx.array, chosen: mx.array) -> mx.array:
        """Of x [..., 1 or k, 1, columns] by the chosen [..., k] of a stack: [..., k, 1, rows]."""
        weight, form = self._arrays[f"{path}.weight"], self._forms.get(path)
        if form is None:
            return mx.gather_mm(x, weight.swapaxes(-1, -2), rhs_indices=chosen)
        scales, biases = self._coded(path)
        return mx.gather_qmm(
            x,
            weight,
            scales,
            biases,
            rhs_indices=chosen,
            group_size=form.group_size,
            bits=form.bits,
            mode=form.mode,
        )

    def norm(self, path: str, x: mx.array) -> mx.array:
        """RMSNorm or LayerNorm; nothing where the module has none."""
        weight = self._arrays.get(f"{path}.weight")
        if weight is None:
            return x
        if self._config.is_centered:
            bias = self._arrays.get(f"{path}.bias")
            return mx.fast.layer_norm(x, weight, bias, self._config.rms_norm_eps)
        return mx.fast.rms_norm(x, weight, self._config.rms_norm_eps)

    def _coded(self, path: str) -> tuple[mx.array, mx.array | None]:
        return self._arrays[f"{path}.scales"], self._arrays.get(f"{path}.biases")


class MlxEncoder:
    """One loaded encoder. Made by `load_encoder`."""

    def __init__(self, arrays: _Arrays, config: EncoderConfig, artifact: Artifact) -> None:
        self._arrays = arrays
        self._config = config
        self._tables = artifact.rope
        self.artifact = artifact

    def embed(self, batch: Sequence[tuple[int, ...]]) -> list[bytes]:
        """Texts of any lengths: those of like length share a run."""
        vectors: dict[int, bytes] = {}
        for places in plan_runs([len(ids) for ids in batch], MAX_RUN_IDS):
            found = self.run([batch[place] for place in places])
            vectors |= dict(zip(places, found, strict=True))
        return [vectors[place] for place in range(len(batch))]

    def run(self, texts: Sequence[tuple[int, ...]]) -> list[bytes]:
        """Float32 little-endian vectors, not normalised; "rank": the scores of the labels."""
        return [vector.tobytes() for vector in self._vectors(texts)]

    def is_finite(self, ids: tuple[int, ...]) -> bool:
        """Whether the numbers that it computes in hold this text."""
        return bool(np.isfinite(self._vectors([ids])).all())

    def _vectors(self, texts: Sequence[tuple[int, ...]]) -> np.ndarray:
        """f32 [texts, width]."""
        longest = max(map(len, texts))
        ids = mx.array([[*text, *[0] * (longest - len(text))] for text in texts])
        lengths = mx.array([len(text) for text in texts])
        x = self._embedded(ids)
        masks = _Masks(lengths, longest, self._config.is_causal, x.dtype)
        for index, block in enumerate(self._config.blocks):
            x = self._block(f"blocks.{index}", block, x, masks)
        x = self._arrays.norm("output_norm", x)
        return np.array(self._projected(self._pooled(x, lengths)).astype(mx.float32), "<f4")

    def _embedded(self, ids: mx.array) -> mx.array:
        arrays = self._arrays
        x = arrays.rows("embedding", ids) * self._config.embedding_scale
        if arrays.has("token_type"):
            x = x + arrays.rows("token_type", slice(0, 1))
        if arrays.has("positions"):
            x = x + arrays.rows("positions", slice(0, ids.shape[1]))
        return arrays.norm("embedding_norm", x)

    # ---- blocks ----

    def _block(self, stem: str, block: Block, x: mx.array, masks: _Masks) -> mx.array:
        """Norms before, after a branch and after the sum: a file has some of them."""
        norm = self._arrays.norm
        branch = self._attention(stem, block, norm(f"{stem}.attention_norm", x), masks)
        branch = norm(f"{stem}.post_attention_norm", branch) * block.residual_scale
        after = norm(f"{stem}.after_attention_norm", x + branch)
        if self._arrays.has(f"{stem}.second_after_norm"):
            after = norm(f"{stem}.second_after_norm", after + x)
        branch = self._feed_forward(stem, block, norm(f"{stem}.feed_forward_norm", after))
        branch = norm(f"{stem}.post_feed_forward_norm", branch) * block.residual_scale
        return norm(f"{stem}.after_feed_forward_norm", after + branch)

    def _attention(self, stem: str, block: Block, x: mx.array, masks: _Masks) -> mx.array:
        stem = f"{stem}.attention"
        query, key, value = self._projections(stem, block, x)
        query = self._heads(f"{stem}.query_norm", block, query, block.heads)
        key = self._heads(f"{stem}.key_norm", block, key, block.kv_heads)
        value = _split(value, block.kv_heads)
        mixed = mx.fast.scaled_dot_product_attention(
            query, key, value, scale=block.scale, mask=masks.of(block)
        )
        joined = mixed.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)
        return self._arrays.linear(f"{stem}.output", joined)

    def _projections(self, stem: str, block: Block, x: mx.array) -> list[mx.array]:
        if not self._arrays.has(f"{stem}.fused"):
            return [self._arrays.linear(f"{stem}.{part}", x) for part in ("query", "key", "value")]
        fused = self._arrays.linear(f"{stem}.fused", x)
        queries, keys = block.heads * block.head_size, block.kv_heads * block.head_size
        query, key, value = mx.split(fused, [queries, queries + keys], axis=-1)
        return [query, key, value]

    def _heads(self, norm: str, block: Block, x: mx.array, heads: int) -> mx.array:
        """[B, heads, S, size], normed over all heads or each of them, and rotated."""
        is_wide = self._arrays.has(norm) and self._arrays.rows(norm, slice(None)).size > (
            block.head_size
        )
        if is_wide:
            x = self._arrays.norm(norm, x)
        x = _split(x, heads)
        if not is_wide:
            x = self._arrays.norm(norm, x)
        return _rotated(x, self._tables[block.rope], block.interleaved) if block.rope else x

    def _feed_forward(self, stem: str, block: Block, x: mx.array) -> mx.array:
        arrays, stem = self._arrays, f"{stem}.feed_forward"
        if block.experts_used:
            return self._mixture(stem, block, x)
        up = arrays.linear(f"{stem}.up", x)
        if block.is_up_fused:
            gate, up = mx.split(up, 2, axis=-1)
            inner = _activated(block.activation, gate) * up
        elif arrays.has(f"{stem}.gate"):
            inner = _activated(block.activation, arrays.linear(f"{stem}.gate", x)) * up
        else:
            inner = _activated(block.activation, up)
        return arrays.linear(f"{stem}.down", inner)

    def _mixture(self, stem: str, block: Block, x: mx.array) -> mx.array:
        """Experts without gates, each times its share of the softmax over all of them."""
        arrays = self._arrays
        shares = mx.softmax(arrays.linear(f"{stem}.router", x), axis=-1, precise=True)
        chosen = mx.argpartition(-shares, block.experts_used - 1, axis=-1)
        chosen = chosen[..., : block.experts_used]
        inner = arrays.experts(f"{stem}.up_proj", x[..., None, None, :], chosen)
        found = arrays.experts(f"{stem}.down_proj", _activated(block.activation, inner), chosen)
        weights = mx.take_along_axis(shares, chosen, axis=-1)[..., None]
        return (found.squeeze(-2) * weights).sum(axis=-2)

    # ---- pooling ----

    def _pooled(self, x: mx.array, lengths: mx.array) -> mx.array:
        """[B, E]. Without pooling the mean, as the ONNX engine does."""
        pooling = self._config.pooling
        if pooling in ("mean", ""):
            is_real = mx.arange(x.shape[1]) < lengths[:, None]
            summed = mx.where(is_real[..., None], x.astype(mx.float32), 0.0).sum(axis=1)
            return (summed / lengths[:, None]).astype(x.dtype)
        # A causal model that ranks has read everything only at its last id.
        if pooling == "last" or (pooling == "rank" and self._config.is_causal):
            return mx.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]
        return x[:, 0]

    def _projected(self, x: mx.array) -> mx.array:
        config = self._config
        for place in range(config.projections):
            x = mx.tanh(x) if place and config.has_tanh else x
            x = self._arrays.linear(f"projections.{place}", x)
        x = mx.tanh(x) if config.ends_in_tanh else x
        return mx.softmax(x, axis=-1, precise=True) if config.has_softmax else x


class _Masks:
    """What is added to the scores of a padded batch: [B, heads or 1, S, S], once per kind of block."""

    def __init__(self, lengths: mx.array, count: int, is_causal: bool, numbers: mx.Dtype) -> None:
        steps = mx.arange(count)
        self._distances = steps[:, None] - steps[None, :]
        self._is_seen = mx.broadcast_to(
            (steps < lengths[:, None])[:, None, None, :], (len(lengths), 1, count, count)
        )
        self._is_causal = is_causal
        self._numbers = numbers
        self._kinds: dict[tuple[int, float, int], mx.array] = {}

    def of(self, block: Block) -> mx.array:
        kind = block.window, block.alibi_bias, block.heads
        if kind not in self._kinds:
            self._kinds[kind] = self._made(block)
        return self._kinds[kind]

    def _made(self, block: Block) -> mx.array:
        distances, is_seen = self._distances, self._is_seen
        if self._is_causal:
            is_seen = is_seen & (distances >= 0)
        if block.window:
            reach = block.window - 1 if self._is_causal else block.window // 2
            is_seen = is_seen & (mx.abs(distances) <= reach)
        added = mx.array(0.0)
        if block.alibi_bias:
            slopes = mx.array(_alibi_slopes(block.heads, block.alibi_bias))
            added = -slopes[:, None, None] * mx.abs(distances)
        return mx.where(is_seen, added, MASKED).astype(self._numbers)


def _alibi_slopes(heads: int, bias: float) -> list[float]:
    """Of each head; ggml's `soft_max_ext`: powers of 2^(-bias/n), n the power of two up to heads."""
    whole = 1 << (heads.bit_length() - 1)
    first, second = 2.0 ** (-bias / whole), 2.0 ** (-bias / 2 / whole)
    return [
        math.pow(first, head + 1) if head < whole else math.pow(second, 2 * (head - whole) + 1)
        for head in range(heads)
    ]


def _split(x: mx.array, heads: int) -> mx.array:
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _rotated(x: mx.array, table: RopeTable, interleaved: bool) -> mx.array:
    """By a table of frequencies, the first 2·pairs numbers of each head."""
    rotated = 2 * len(table.inverse_frequencies)
    wavelengths = 1.0 / mx.array(table.inverse_frequencies)
    if table.magnitude != 1.0:
        head, rest = x[..., :rotated] * table.magnitude, x[..., rotated:]
        x = mx.concatenate([head, rest], axis=-1)
    return mx.fast.rope(
        x, rotated, traditional=interleaved, base=None, scale=1.0, offset=0, freqs=wavelengths
    )


def _activated(kind: str, x: mx.array) -> mx.array:
    match kind:
        case "silu":
            return nn.silu(x)
        case "gelu":
            return nn.gelu(x)
        case _:
            return nn.gelu_approx(x)
