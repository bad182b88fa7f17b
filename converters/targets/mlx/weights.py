"""Writes `model.safetensors` as a layout says, in row slices: memory is a constant.

Decides nothing but how many rows go at once. What becomes of each weight is measured on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from converters.artifact import Exactness, TensorRecord
from converters.errors import MalformedFile
from converters.gguf import TensorInfo
from converters.output_file import OutputFile
from converters.parallel import RunInOrder
from converters.targets.mlx.encode import encode
from converters.targets.mlx.floats import Errors, rounded, stored
from converters.targets.mlx.forms import Number
from converters.targets.mlx.layout import Layout, Matrix, Run, Vector
from converters.tensor_reader import TensorReader

# Weights per slice: 8 MiB as fp32.
SLICE_ELEMENTS = 1 << 21

Numbers = npt.NDArray[np.generic]


class Slice(NamedTuple):
    """Some rows of a matrix, and its position in the layout."""

    position: int
    matrix: Matrix
    run: Run


class WeightsWriter:
    """Writes to a file that the caller closes. Copies of it in other processes write slices too."""

    def __init__(self, layout: Layout, reader: TensorReader, target: OutputFile) -> None:
        self._layout = layout
        self._reader = reader
        self._target = target

    def write(self, run: RunInOrder, advance: Callable[[int], None]) -> list[TensorRecord]:
        """The whole file; gives what became of each tensor, once. Raises ConversionError, OSError.

        `advance` is told bytes as they are written.
        """
        self._target.resize(self._layout.weights_bytes)
        advance(self._put(self._layout.header, 0))
        records = [self._write_vector(vector, advance) for vector in self._layout.vectors]
        records += self._write_matrices(run, advance)
        return _merged(record for record in records if record is not None)

    def _write_vector(self, vector: Vector, advance: Callable[[int], None]) -> TensorRecord | None:
        item: Number = "F32" if vector.array.item == "F32" else self._layout.number
        if vector.tensor is None:
            same = stored(np.full(vector.length, vector.shift, np.float32), item)
            advance(self._put(same, vector.array.offset))
            return None
        exact = self._vector_numbers(vector, vector.tensor)
        errors = Errors()
        numbers = self._rounded(exact, vector.tensor.name, errors, item)
        advance(self._put(numbers, vector.array.offset))
        return _record(vector.tensor.name, vector, item.lower(), errors)

    def _vector_numbers(self, vector: Vector, tensor: TensorInfo) -> npt.NDArray[np.float32]:
        """As the module has them, before rounding. Raises MalformedFile outside a function's range."""
        exact = np.empty(vector.length, np.float32)
        for run in vector.runs:
            part = self._reader.floats(tensor, run.source, run.count)
            exact[run.target : run.target + run.count] = part
        if vector.function:
            if not (exact < 0).all():
                raise MalformedFile(f"tensor {tensor.name!r} holds a number that is not negative")
            return np.log(-exact)
        exact = exact + np.float32(vector.shift) if vector.shift else exact
        return (
            exact[halves_of_pairs(vector.length, vector.head_size)] if vector.head_size else exact
        )

    def _write_matrices(
        self, run: RunInOrder, advance: Callable[[int], None]
    ) -> list[TensorRecord]:
        costs = [Errors() for _ in self._layout.matrices]

        def finish(done: tuple[int, Errors, int]) -> None:
            index, found, written = done
            costs[index].merge(found)
            advance(written)

        slices = (
            Slice(index, matrix, rows)
            for index, matrix in enumerate(self._layout.matrices)
            for rows in _slices(matrix)
        )
        run(self._write_slice, slices, finish)
        return [
            _record(matrix.tensor.name, matrix, self._form_name(matrix), errors)
            for matrix, errors in zip(self._layout.matrices, costs, strict=True)
        ]

    def _form_name(self, matrix: Matrix) -> str:
        return str(matrix.form) if matrix.form.mode else self._layout.number.lower()

    def _write_slice(self, part: Slice) -> tuple[int, Errors, int]:
        """(the matrix's index, what it cost, bytes written). In any process."""
        write = self._write_turned if part.matrix.is_transposed else self._write_rows
        return part.position, *write(part.matrix, part.run)

    def _write_rows(self, matrix: Matrix, run: Run) -> tuple[Errors, int]:
        """(what it cost, bytes written). In any process."""
        elements = run.source * matrix.columns, run.count * matrix.columns
        errors, order = Errors(), _order(matrix, run.count)
        if matrix.form.mode:
            raw = self._reader.blocks(matrix.tensor, *elements)
            raw = raw.reshape(run.count, -1)[order].reshape(raw.shape)
            encoded = encode(raw, matrix.tensor, matrix.form, self._layout.number, errors)
            parts = {"weight": encoded.codes, "scales": encoded.scales, "biases": encoded.biases}
        else:
            exact = self._reader.floats(matrix.tensor, *elements)
            exact = exact.reshape(run.count, matrix.columns)[order]
            parts = {"weight": self._rounded(exact, matrix.tensor.name, errors)}
        written = 0
        for role, array in matrix.arrays.items():
            place = array.offset + run.target * (array.nbytes // matrix.rows)
            written += self._put(_in_order(parts[role], matrix.column_order, run.count), place)
        return errors, written

    def _write_turned(self, matrix: Matrix, run: Run) -> tuple[Errors, int]:
        """A whole block of [count, columns], transposed; such matrices have no codes."""
        errors, array = Errors(), matrix.arrays["weight"]
        count = run.count * matrix.columns
        exact = self._reader.floats(matrix.tensor, run.source * matrix.columns, count)
        exact = np.ascontiguousarray(exact.reshape(run.count, matrix.columns).T)
        numbers = self._rounded(exact, matrix.tensor.name, errors)
        place = array.offset + run.target * (array.nbytes // matrix.rows)
        return errors, self._put(numbers, place)

    def _rounded(
        self, exact: npt.NDArray[np.float32], name: str, errors: Errors, item: Number | None = None
    ) -> Numbers:
        numbers, kept = rounded(exact, name, item or self._layout.number)
        errors.add(kept - exact)
        return numbers

    def _put(self, values: Numbers | bytes | None, offset: int) -> int:
        assert values is not None
        return self._target.put(values, offset)


def halves_of_pairs(rows: int, head_size: int) -> npt.NDArray[np.intp]:
    """For each row of heads that rotate (i, i + half), where it is in heads that rotate (2i, 2i+1)."""
    order = np.arange(rows).reshape(-1, head_size // 2, 2)
    return order.swapaxes(1, 2).reshape(-1)


def _order(matrix: Matrix, rows: int) -> npt.NDArray[np.intp] | slice:
    return halves_of_pairs(rows, matrix.head_size) if matrix.head_size else slice(None)


def _in_order(values: Numbers | None, order: tuple[int, ...], rows: int) -> Numbers | None:
    """Each row's equal parts in another order; as codes they are whole bytes."""
    if not order or values is None:
        return values
    return values.reshape(rows, len(order), -1)[:, order]


def _slices(matrix: Matrix) -> Iterator[Run]:
    """Of about SLICE_ELEMENTS each; whole heads where their rows are turned, whole runs transposed."""
    unit = matrix.head_size or 1
    step = max(1, SLICE_ELEMENTS // (matrix.columns * unit)) * unit
    for run in matrix.runs:
        if matrix.is_transposed:
            yield run
            continue
        for done in range(0, run.count, step):
            yield Run(run.source + done, run.target + done, min(step, run.count - done))


def _merged(records: Iterable[TensorRecord]) -> list[TensorRecord]:
    """A tensor that went to several places was changed as much as in the worst of them."""
    found: dict[str, TensorRecord] = {}
    for record in records:
        other = found.get(record.name, record)
        found[record.name] = max(record, other, key=lambda each: each.max_error)
    return list(found.values())


def _record(name: str, part: Matrix | Vector, form: str, errors: Errors) -> TensorRecord:
    assert part.tensor is not None
    return TensorRecord(
        name=name,
        source_type=part.tensor.type_name,
        shape=part.tensor.shape,
        exactness=_exactness(part, errors),
        form=form,
        max_error=errors.largest,
        rms_error=errors.rms,
    )


def _exactness(part: Matrix | Vector, errors: Errors) -> Exactness:
    if not errors.largest and not (isinstance(part, Vector) and part.function):
        return "exact"
    is_kept = isinstance(part, Matrix) and part.form.kind in ("codes", "products")
    return "scale-rounded" if is_kept else "re-encoded"
