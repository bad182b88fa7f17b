"""The smallest loop that runs a converted model: no cache management, no sampling, no speed.

Feeds the graph as its contract says (`converters/targets/onnx/decoder.py`), with one row and caches
that grow by copying, so that the converter can be tested without the engine.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from backends.onnx.adapter import load_adapter
from backends.onnx.session import open_session
from converters.artifact import GRAPH_FILE, WEIGHTS_FILE, Artifact, CodedTable, read_artifact

Floats = npt.NDArray[np.float32]


class OnnxLoop:
    """One loaded artifact and one row of ids."""

    def __init__(
        self, folder: pathlib.Path, context: int = 256, adapter: pathlib.Path | None = None
    ) -> None:
        self.artifact = read_artifact(folder)
        if adapter:
            loaded = load_adapter([str(adapter)], self.artifact, folder)
            self.session = open_session(
                folder, self.artifact, threads=1, precise=False, adapter=loaded
            )
        else:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self.session = onnxruntime.InferenceSession(str(folder / GRAPH_FILE), options)
        self.weights = np.memmap(folder / WEIGHTS_FILE, np.uint8, "r")
        self.caches = _caches(self.artifact)
        self.rope = rope_inputs(self.artifact, context)
        self._length = 0

    def run(self, ids: list[int], wanted: list[int] | None = None) -> dict[str, Any]:
        """Appends `ids`; outputs for the wanted positions of them (default: the last)."""
        return self.run_vectors(self._embedded(ids), wanted)

    def run_vectors(self, vectors: Floats, wanted: list[int] | None = None) -> dict[str, Any]:
        """As `run`, for positions whose vectors f32 [ids, E] are given."""
        assert self.artifact.onnx is not None
        rows = [len(vectors) - 1] if wanted is None else wanted
        total = self._length + len(vectors)
        feeds = {
            "inputs_embeds": vectors[None],
            "seqlens_k": np.array([total - 1], np.int32),
            "total": np.array(total, np.int32),
            "logit_rows": np.array(rows, np.int64),
            **self.rope,
            **self.caches,
        }
        names = [output.name for output in self.session.get_outputs()]
        found = dict(zip(names, self.session.run(names, feeds), strict=True))
        self.caches = {name: found[name.replace("past", "present")] for name in self.caches}
        self._length = total
        return found

    def embedded(self, ids: list[int]) -> Floats:
        """What `run_vectors` is given for ids."""
        return self._embedded(ids)

    def _embedded(self, ids: list[int]) -> Floats:
        """f32 [ids, E], and behind them what blocks have of their own."""
        graph = self.artifact.onnx
        assert graph is not None
        found = looked_up(self.weights, graph.embedding, ids) * np.float32(graph.embedding_scale)
        if graph.deepstack:
            zeros = np.zeros((len(ids), graph.deepstack * found.shape[1]), np.float32)
            return np.concatenate([found, zeros], axis=1)
        if graph.per_block is None:
            return found
        own = looked_up(self.weights, graph.per_block, ids) * np.float32(graph.per_block_scale)
        return np.concatenate([found, own], axis=1)

    def logprobs(self, ids: list[int]) -> npt.NDArray[np.float64]:
        """f64 [vocabulary], for the id after `ids`."""
        found = self.run(ids)
        return found["logits"][0].astype(np.float64) - float(found["lse"][0])

    def greedy(self, ids: list[int], count: int) -> list[int]:
        chosen: list[int] = []
        for _ in range(count):
            chosen.append(int(self.run(ids)["topk_ids"][0, 0]))
            ids = chosen[-1:]
        return chosen


def looked_up(weights: npt.NDArray[np.uint8], table: CodedTable, ids: list[int]) -> Floats:
    """f32 [ids, columns], by the formula in `CodedTable`, one id at a time."""
    return np.stack([_row(weights, table, identity) for identity in ids])


def _row(weights: npt.NDArray[np.uint8], table: CodedTable, row: int) -> Floats:
    def read(offset: int, item: str, index: int, count: int) -> npt.NDArray[Any]:
        start = offset + index * count * np.dtype(item).itemsize
        return weights[start : start + count * np.dtype(item).itemsize].view(item)

    if table.bits in (16, 32):
        item = "<f4" if table.bits == 32 else "<f2"
        return read(table.codes_offset, item, row, table.columns).astype(np.float32)
    blocks = table.columns // table.block
    codes = read(table.codes_offset, "u1", row, table.columns * table.bits // 8)
    if table.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=1).reshape(-1)
    number = "<f4" if table.number_bits == 32 else "<f2"
    scales = read(table.scales_offset, number, row, blocks)[:, None].astype(np.float32)
    codes = codes.reshape(blocks, table.block).astype(np.float32)
    values = scales * (codes - np.float32(2 ** (table.bits - 1)))
    if table.correction_offset >= 0:
        every = read(table.correction_offset, number, 0, blocks * table.rows)
        values += every.reshape(blocks, -1)[:, row, None]
    return values.reshape(-1).astype(np.float32)


def _caches(artifact: Artifact) -> dict[str, Floats]:
    """Empty keys and values of the blocks that attend, and zeroed states."""
    assert artifact.onnx is not None
    number = np.dtype(artifact.onnx.key_value_dtype)
    heads = list(artifact.kv_heads)
    heads = heads * artifact.block_count if len(heads) == 1 else heads
    caches = {
        f"past_{kind}.{index}": np.zeros((1, count, 0, artifact.head_size), number)
        for index, count in enumerate(heads)
        for kind in ("key", "value")
        if count
    }
    states = {state.past: np.zeros((1, *state.shape), np.float32) for state in artifact.onnx.states}
    return caches | states


def rope_inputs(artifact: Artifact, context: int) -> dict[str, Floats]:
    """The graph's rotary inputs, for a session of `context` positions."""
    number = np.dtype(artifact.onnx.key_value_dtype if artifact.onnx else "float32")
    tables: dict[str, Floats] = {}
    for name, table in artifact.rope.items():
        suffix = "" if name == "global" else f"_{name}"
        is_long = table.long_inverse_frequencies and context > table.original_context_length
        frequencies = table.long_inverse_frequencies if is_long else table.inverse_frequencies
        magnitude = table.long_magnitude if is_long else table.magnitude
        angles = np.arange(context)[:, None] * np.array(frequencies)
        for part, function in (("cos", np.cos), ("sin", np.sin)):
            tables[part + suffix] = (function(angles) * magnitude).astype(number)
    return tables
