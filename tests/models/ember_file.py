"""The bundled model as a GGUF file: llama architecture, Q8_0 matrices, F32 norms."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter
from gguf.constants import GGMLQuantizationType, LlamaFileType
from gguf.quants import quantize

from tests.models.ember_text import EmberText

NAME = "Ember"
LICENSE = "apache-2.0"


@dataclass(frozen=True)
class EmberShape:
    """EmberShape; the embedding is a multiple of 256 so that K-quants of the file can be made."""

    vocabulary: int = 2048
    blocks: int = 6
    embedding: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 64
    feed_forward: int = 768
    context: int = 2048
    rope_base: float = 10000.0
    epsilon: float = 1e-5


def write_gguf(
    path: Path, shape: EmberShape, weights: dict[str, npt.NDArray[np.float32]], text: EmberText
) -> None:
    """Write beside and rename; `weights` carry GGUF names, matrices as [rows, columns]."""
    partial = path.with_suffix(".partial")
    writer = GGUFWriter(partial, "llama")
    add_metadata(writer, shape, text)
    for name, value in weights.items():
        if value.ndim == 2:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def add_metadata(writer: GGUFWriter, shape: EmberShape, text: EmberText) -> None:
    writer.add_name(NAME)
    writer.add_description("A very small model for the first answer and for tests")
    writer.add_license(LICENSE)
    writer.add_languages(["en"])
    writer.add_size_label("5M")
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(2)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.blocks)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_vocab_size(len(text.vocabulary.tokens))
    text.vocabulary.write(writer)
