"""llama.cpp's own tokenizer, loaded in this process from the `xllamacpp` wheel.

Owns the ctypes signatures and the loading of a model of one block that carries a vocabulary; the
weights are zeros and are never run.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np
import xllamacpp
from gguf import GGUFWriter

EMBEDDING = 32


class _ModelParameters(ctypes.Structure):
    """Longer than the real structure: passed by value, the rest of it is not looked at."""

    _fields_ = [("room", ctypes.c_uint64 * 64)]


class ReferenceTokenizer:
    """The vocabulary of one GGUF. Special tokens in a text are parsed; it is framed on demand."""

    def __init__(self, path: Path) -> None:
        self._library = _library()
        parameters = self._library.llama_model_default_params()
        self._model = self._library.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise ValueError("llama.cpp does not load this file")
        self._vocabulary = self._library.llama_model_get_vocab(self._model)

    def close(self) -> None:
        self._library.llama_model_free(self._model)

    def encode(self, text: str, *, parses_special: bool = True, frames: bool = False) -> list[int]:
        raw = text.encode()
        ids = (ctypes.c_int32 * (2 * len(raw) + 16))()
        count = self._library.llama_tokenize(
            self._vocabulary, raw, len(raw), ids, len(ids), frames, parses_special
        )
        assert count >= 0
        return list(ids[:count])

    def decode(self, ids: list[int]) -> str:
        given = (ctypes.c_int32 * len(ids))(*ids)
        text = ctypes.create_string_buffer(64 * len(ids) + 64)
        count = self._library.llama_detokenize(
            self._vocabulary, given, len(ids), text, len(text), False, False
        )
        assert count >= 0
        return text.raw[:count].decode(errors="replace")

    def end_ids(self) -> tuple[int, ...]:
        count = self._library.llama_vocab_n_tokens(self._vocabulary)
        ends = self._library.llama_vocab_is_eog
        return tuple(index for index in range(count) if ends(self._vocabulary, index))

    def adds_bos(self) -> bool:
        return self._library.llama_vocab_get_add_bos(self._vocabulary)

    def bos_and_eos(self) -> tuple[int, int]:
        vocabulary = self._vocabulary
        return self._library.llama_vocab_bos(vocabulary), self._library.llama_vocab_eos(vocabulary)


def write_vocabulary_model(path: Path, vocabulary_size: int, keys: dict[str, Any]) -> None:
    """A llama of one block and no weight but zero, with the `tokenizer.*` and other `keys`."""
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(1)
    writer.add_feed_forward_length(EMBEDDING)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in keys.items():
        _add(writer, key, value)
    for name, shape in _shapes(vocabulary_size).items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _shapes(vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    square, row = (EMBEDDING, EMBEDDING), (EMBEDDING,)
    matrices = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    return {
        "token_embd.weight": (vocabulary_size, EMBEDDING),
        "output_norm.weight": row,
        "blk.0.attn_norm.weight": row,
        "blk.0.ffn_norm.weight": row,
        **{f"blk.0.{name}.weight": square for name in matrices},
    }


@functools.cache
def _library() -> Any:
    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)  # pyright: ignore[reportAttributeAccessIssue]
    pointer, integer, flag = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "llama_model_default_params": (_ModelParameters, []),
        "llama_model_load_from_file": (pointer, [ctypes.c_char_p, _ModelParameters]),
        "llama_model_free": (None, [pointer]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_tokenize": (
            integer,
            [pointer, ctypes.c_char_p, integer, pointer, integer, flag, flag],
        ),
        "llama_detokenize": (
            integer,
            [pointer, pointer, integer, ctypes.c_char_p, integer, flag, flag],
        ),
        "llama_vocab_n_tokens": (integer, [pointer]),
        "llama_vocab_is_eog": (flag, [pointer, integer]),
        "llama_vocab_get_add_bos": (flag, [pointer]),
        "llama_vocab_bos": (integer, [pointer]),
        "llama_vocab_eos": (integer, [pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    _silence(library)
    library.llama_backend_init()
    return library


_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


@_LogCallback
def _ignore(level: int, text: bytes, user: int) -> None:
    """llama.cpp's log says what a test asks it to do."""


def _silence(library: ctypes.CDLL) -> None:
    library.llama_log_set(_ignore, None)
