"""Numbers of another model, runtime or rotation are never taken for those of this one."""

from __future__ import annotations

from typing import Any

import msgspec

from backends.engine.fingerprint import runtime_fingerprint
from backends.types import Load
from converters.artifact import Artifact, RopeTable, SpecialTokens

LONG = RopeTable(
    inverse_frequencies=(1.0,), long_inverse_frequencies=(0.5,), original_context_length=100
)
ARTIFACT = Artifact(
    format=1, converter=1, source="0" * 64, variant="v", architecture="phi3", block_count=1,
    embedding_length=1, heads=1, kv_heads=(1,), head_size=1, vocabulary=10, context_length=1000,
    kv_bytes_per_token=4, special=SpecialTokens(), rope={"global": LONG},
)  # fmt: skip


def fingerprint(context: int = 100, runtime: tuple[object, ...] = ("1.0",), **fields: Any) -> str:
    adapters = fields.pop("adapters", ())
    load = Load(
        request_id="l", backend="onnx", artifact="x", rows=1, context_length=context, adapters=adapters
    )  # fmt: skip
    return runtime_fingerprint(load, msgspec.structs.replace(ARTIFACT, **fields), context, runtime)


def test_what_decides_the_numbers_decides_the_fingerprint() -> None:
    assert fingerprint() == fingerprint(50)
    others = {
        fingerprint(101),  # longrope rotates by other factors from here on
        fingerprint(runtime=("1.1",)),
        fingerprint(adapters=("/a/one/two",)),
        fingerprint(source="1" * 64),
        fingerprint(converter=2),
    }
    assert len(others - {fingerprint()}) == 5
