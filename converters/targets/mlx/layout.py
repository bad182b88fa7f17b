"""Where every number of `model.safetensors` will lie: pure data from a model's shape and tensors."""

from __future__ import annotations

from typing import Literal

import msgspec

from converters.gguf import TensorInfo
from converters.targets.mlx.forms import Form, Number
from converters.targets.mlx.safetensors import Array


class Run(msgspec.Struct, frozen=True):
    """`count` rows of a tensor from row `source` on, which become rows `target`… of an array."""

    source: int
    target: int
    count: int


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of a tensor at the module `path`; those of all experts or heads in a stack.

    `arrays` of `rows` rows, by role: `weight`, and for codes `scales` and (affine) `biases`; `runs`
    say which row goes where. `columns` are the tensor's. `head_size` is not 0 where the rows of each
    head go from neighbouring pairs to two halves; `column_order` where the equal parts of each row
    change places: entry i is where part i is in the file. `is_transposed`: each run's block of
    [count, columns] is turned, and `target` counts the rows that come out.
    """

    path: str
    tensor: TensorInfo
    rows: int
    columns: int
    form: Form
    arrays: dict[str, Array]
    runs: tuple[Run, ...]
    head_size: int = 0
    column_order: tuple[int, ...] = ()
    is_transposed: bool = False


class Vector(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of the file, or zeros where `tensor` is None, plus `shift`; `runs` as in a Matrix.

    `function` "log of negative": ln(-x), in place of x.
    """

    array: Array
    length: int
    tensor: TensorInfo | None
    runs: tuple[Run, ...] = ()
    head_size: int = 0
    shift: float = 0.0
    function: Literal["", "log of negative"] = ""


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """`header` is how the file begins; `weights_bytes` is all of it.

    `context_length` is how many ids the module takes as the file means them, `cached_numbers` how
    many it keeps for each of them.
    """

    matrices: tuple[Matrix, ...]
    vectors: tuple[Vector, ...]
    number: Number
    header: bytes
    weights_bytes: int
    context_length: int
    cached_numbers: int

    @property
    def fp32_bytes(self) -> int:
        """What the arrays take where all floats become fp32."""
        arrays = [vector.array for vector in self.vectors]
        arrays += [array for matrix in self.matrices for array in matrix.arrays.values()]
        return sum(array.nbytes * (2 if array.item in ("F16", "BF16") else 1) for array in arrays)

    def quantization(self) -> dict[str, object]:
        """mlx-lm's own key: a default that no module needs, then each coded module by its path."""
        entries: dict[str, object] = {}
        for matrix in self.matrices:
            form = matrix.form
            if form.mode:
                entries[matrix.path] = {
                    "group_size": form.group,
                    "bits": form.bits,
                    "mode": form.mode,
                }
        return {"group_size": 32, "bits": 8, "mode": "affine", **entries} if entries else {}
