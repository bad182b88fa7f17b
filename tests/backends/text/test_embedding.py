from __future__ import annotations

import json
import math

import numpy as np
import pytest

from backends.text.embedding import embedded, passage_ids
from backends.types import Embed, EngineError
from tests.backends.text.small_tokenizers import byte_level

TOKENIZER = byte_level(add_eos=True)


def embed(*texts: str, **options: object) -> Embed:
    return Embed(request_id="e", texts=texts, **options)  # type: ignore[arg-type]


def test_special_ids_frame_each_text_once() -> None:
    ids = passage_ids(TOKENIZER, embed("ab", "<s>ab</s>"), 16)
    assert ids == ((258, 97, 98, 259), (258, 97, 98, 259))


def test_truncation_keeps_the_frame() -> None:
    assert passage_ids(TOKENIZER, embed("abcdef"), 4) == ((258, 97, 98, 259),)
    short = embed("abcdef", context_length=3)
    assert passage_ids(TOKENIZER, short, 100) == ((258, 97, 259),)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(EngineError, match="the input length exceeds the context length") as refusal:
        passage_ids(TOKENIZER, embed("abcdef", truncate=False), 4)
    assert refusal.value.code == "too_long"
    with pytest.raises(EngineError, match="exceeds maximum context length"):
        passage_ids(TOKENIZER, embed("a"), 2)


def vector(*values: float) -> bytes:
    return np.array(values, dtype="<f4").tobytes()


def test_vectors_are_normalised_cut_and_written_shortest() -> None:
    answer = embedded(embed("x"), [vector(3, 4)], 1)
    assert answer.json == (b"[0.6,0.8]",)
    assert (
        np.frombuffer(answer.vectors[0], "<f4").tolist()
        == np.array([0.6, 0.8], dtype="<f4").tolist()
    )
    assert embedded(embed("x", dimensions=2), [vector(3, 4, 12)], 1).json == (b"[0.6,0.8]",)
    assert embedded(embed("x", dimensions=9), [vector(3, 4)], 1).json == (b"[0.6,0.8]",)
    assert embedded(embed("x", normalize=False), [vector(3, 4)], 1).json == (b"[3.0,4.0]",)


def test_json_is_the_same_numbers() -> None:
    values = np.random.default_rng(1).normal(size=100).astype(np.float32) * np.float32(1e-6)
    answer = embedded(embed("x", normalize=False), [values.tobytes()], 1)
    assert np.array(json.loads(answer.json[0]), dtype="<f4").tolist() == values.tolist()


def test_a_zero_vector_stays_zero_and_nan_is_refused() -> None:
    assert embedded(embed("x"), [vector(0, 0)], 1).json == (b"[0.0,0.0]",)
    with pytest.raises(EngineError, match="NaN or Inf"):
        embedded(embed("x"), [vector(1, math.nan)], 1)
