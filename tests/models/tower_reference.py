"""Vision towers for images of any size in float64, written out plainly from llama.cpp's graphs.

Nothing here is shared with the product: patches lie in raster order all the way, windows are a mask, and
rotations are products of complex numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader
from gguf.quants import dequantize

Floats = npt.NDArray[np.float64]
BASE, WINDOW = 10000.0, 112


class ReferenceTower:
    """One projector file."""

    def __init__(self, path: str | Path) -> None:
        reader = GGUFReader(path)
        self._keys = {name: field.contents() for name, field in reader.fields.items()}
        self._weights: dict[str, Floats] = {
            tensor.name: dequantize(tensor.data, tensor.tensor_type)
            .reshape(tuple(int(side) for side in reversed(tensor.shape)))
            .astype(np.float64)
            for tensor in reader.tensors
        }
        self.kind: str = self._keys["clip.projector_type"]
        self.patch = self._key("patch_size")
        default = 1 if self.kind == "pixtral" else 2
        self.merge = self._keys.get("clip.vision.spatial_merge_size", default)
        self._is_centered = self.kind in ("qwen2vl_merger", "qwen3vl_merger")
        self._epsilon = self._key("attention.layer_norm_epsilon")

    def _key(self, name: str) -> Any:
        return self._keys[f"clip.vision.{name}"]

    def vectors(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """[positions, W], row breaks among them, of u8 [height, width, 3] that needs no resizing."""
        rows, columns = (side // self.patch for side in pixels.shape[:2])
        x = self._embedded(pixels, rows, columns)
        if self.kind == "qwen3vl_merger":
            x = x + self._places(rows, columns)
        x = self._norm(x, "v.pre_ln")
        deeper: list[Floats] = []
        for index in range(self._key("block_count")):
            x = self._block(x, index, rows, columns)
            if f"v.deepstack.{index}.fc1.weight" in self._weights:
                deeper.append(self._tapped(x, index, rows, columns))
        x = self._norm(x, "v.post_ln")
        own = self._projected(x, rows, columns)
        return np.concatenate([own, *deeper], axis=1)

    def _embedded(self, pixels: npt.NDArray[np.uint8], rows: int, columns: int) -> Floats:
        shade = (pixels / 255.0 - self._key("image_mean")) / self._key("image_std")
        cut = shade.reshape(rows, self.patch, columns, self.patch, 3)
        names = ("v.patch_embd.weight", "v.patch_embd.weight.1")
        kernels = [self._weights[name] for name in names if name in self._weights]
        kernel = np.sum(kernels, axis=0)
        found = np.einsum("rycxk,ekyx->rce", cut, kernel).reshape(rows * columns, -1)
        return found + self._weights.get("v.patch_embd.bias", 0.0)

    def _places(self, rows: int, columns: int) -> Floats:
        """The table drawn out to the grid, its corners kept."""
        table = self._weights["v.position_embd.weight"]
        side = math.isqrt(len(table))
        down, right = (drawn_out(side, count) for count in (rows, columns))
        square = table.reshape(side, side, -1)
        return np.einsum("rs,ct,ste->rce", down, right, square).reshape(rows * columns, -1)

    def _block(self, x: Floats, index: int, rows: int, columns: int) -> Floats:
        stem = f"v.blk.{index}"
        x = x + self._attended(self._norm(x, f"{stem}.ln1"), index, rows, columns)
        normed = self._norm(x, f"{stem}.ln2")
        up = self._linear(normed, f"{stem}.ffn_up")
        if f"{stem}.ffn_gate.weight" in self._weights:
            bent = self._activation(self._linear(normed, f"{stem}.ffn_gate")) * up
        else:
            bent = self._activation(up)
        return x + self._linear(bent, f"{stem}.ffn_down")

    def _attended(self, x: Floats, index: int, rows: int, columns: int) -> Floats:
        stem, heads = f"v.blk.{index}", self._key("attention.head_count")
        if f"{stem}.attn_qkv.weight" in self._weights:
            parts = np.split(self._linear(x, f"{stem}.attn_qkv"), 3, axis=1)
        else:
            parts = [self._linear(x, f"{stem}.attn_{name}") for name in "qkv"]
        query, key, value = (part.reshape(len(x), heads, -1).transpose(1, 0, 2) for part in parts)
        query, key = (self._rotated(each, rows, columns) for each in (query, key))
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1])
        period = self._keys.get("clip.vision.n_wa_pattern", 0)
        if period and (index + 1) % period:
            windows = self._windows(rows, columns)
            scores = np.where(windows[:, None] == windows[None], scores, -np.inf)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        return self._linear(
            (shares @ value).transpose(1, 0, 2).reshape(x.shape), f"{stem}.attn_out"
        )

    def _windows(self, rows: int, columns: int) -> npt.NDArray[np.int64]:
        side = WINDOW // self.patch // self.merge * self.merge
        row, column = np.divmod(np.arange(rows * columns), columns)
        return row // side * columns + column // side

    def _rotated(self, heads: Floats, rows: int, columns: int) -> Floats:
        """[heads, P, size]."""
        size = heads.shape[-1]
        step = np.arange(size // 4)
        row, column = np.divmod(np.arange(rows * columns), columns)
        if self.kind == "pixtral":
            speeds = BASE ** (-4 * step / size), BASE ** (-(4 * step + 2) / size)
            pairs = heads[..., 0::2] + 1j * heads[..., 1::2]
        else:
            speeds = (BASE ** (-4 * step / size),) * 2
            pairs = heads[..., : size // 2] + 1j * heads[..., size // 2 :]
        angles = np.concatenate([np.outer(row, speeds[0]), np.outer(column, speeds[1])], axis=1)
        turned = pairs * np.exp(1j * angles)
        if self.kind == "pixtral":
            return np.stack([turned.real, turned.imag], axis=-1).reshape(heads.shape)
        return np.concatenate([turned.real, turned.imag], axis=-1)

    def _projected(self, x: Floats, rows: int, columns: int) -> Floats:
        if self.kind != "pixtral":
            joined = self._joined(x, rows, columns)
            return self._linear(gelu(self._linear(joined, "mm.0")), "mm.2")
        if self.merge > 1:
            joined = self._joined(self._norm(x, "mm.input_norm"), rows, columns)
            unfolded = joined.reshape(len(joined), self.merge**2, -1).transpose(0, 2, 1)
            x = self._linear(unfolded.reshape(joined.shape), "mm.patch_merger")
        x = self._linear(gelu(self._linear(x, "mm.1")), "mm.2")
        return self._with_breaks(x, rows // self.merge)

    def _with_breaks(self, x: Floats, rows: int) -> Floats:
        line = self._weights["v.token_embd.img_break"][None]
        lines = [np.concatenate([row, line]) for row in np.split(x, rows)]
        return np.concatenate(lines)[:-1]

    def _tapped(self, x: Floats, index: int, rows: int, columns: int) -> Floats:
        stem = f"v.deepstack.{index}"
        normed = self._norm(self._joined(x, rows, columns), f"{stem}.norm")
        return self._linear(gelu(self._linear(normed, f"{stem}.fc1")), f"{stem}.fc2")

    def _joined(self, x: Floats, rows: int, columns: int) -> Floats:
        """[positions, merge² · E]."""
        merge = self.merge
        cut = x.reshape(rows // merge, merge, columns // merge, merge, -1)
        return cut.transpose(0, 2, 1, 3, 4).reshape(len(x) // merge**2, -1)

    def _linear(self, x: Floats, stem: str) -> Floats:
        return x @ self._weights[f"{stem}.weight"].T + self._weights.get(f"{stem}.bias", 0.0)

    def _norm(self, x: Floats, stem: str) -> Floats:
        """The same x where the file has none of that name."""
        if f"{stem}.weight" not in self._weights:
            return x
        if self._is_centered:
            x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + self._epsilon)
        return x * self._weights[f"{stem}.weight"] + self._weights.get(f"{stem}.bias", 0.0)

    @property
    def _activation(self) -> Callable[[Floats], Floats]:
        if self._keys.get("clip.use_gelu"):
            return gelu
        rate = 1.0 if self._keys.get("clip.use_silu") else 1.702
        return lambda x: x / (1 + np.exp(-rate * x))


def gelu(x: Floats) -> Floats:
    """By its tanh formula, as ggml has it."""
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def drawn_out(side: int, count: int) -> Floats:
    """[count, side]: how much of each row of a table stands at each place of the grid."""
    shares = np.zeros((count, side))
    for place in range(count):
        exact = place * (side - 1) / (count - 1)
        low = min(int(exact), side - 2)
        shares[place, low : low + 2] = low + 1 - exact, exact - low
    return shares
