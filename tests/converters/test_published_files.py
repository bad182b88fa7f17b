"""Files as they are in the world become the artifact that the clean file becomes, on both targets."""

from __future__ import annotations

import pathlib
import struct
from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from converters.artifact import MLX_WEIGHTS_FILE, WEIGHTS_FILE, read_artifact
from converters.errors import Unsupported
from tests.models.random_architectures import Value
from tests.models.random_gguf import make_gguf
from tests.parity.converted import converted_file

TARGETS = {"onnx-cpu": WEIGHTS_FILE, "mlx": MLX_WEIGHTS_FILE}
Renamer = Callable[[str], str]
Array = npt.NDArray[Any]

pytestmark = pytest.mark.parametrize("target", TARGETS)


def same(clean: pathlib.Path, published: pathlib.Path, target: str) -> None:
    """Shapes, rotations and every weight."""
    folders = [converted_file(path, target=target) for path in (clean, published)]
    kept = [(folder / TARGETS[target]).read_bytes() for folder in folders]
    assert kept[0] == kept[1]
    first, second = (read_artifact(folder) for folder in folders)
    for field in ("architecture", "heads", "kv_heads", "head_size", "vocabulary", "rope", "causal"):
        assert getattr(first, field) == getattr(second, field)


def rewritten(
    source: pathlib.Path,
    target: pathlib.Path,
    *,
    architecture: str = "",
    name: Renamer = str,
    data: Callable[[str, Array], Array] = lambda name, data: data,
) -> pathlib.Path:
    """The file with another architecture, other names of tensors, or other rows in some of them."""
    reader = gguf.GGUFReader(source)
    old = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture or old)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        element = field.types[-1] if len(field.types) > 1 else None
        key = field.name.replace(f"{old}.", f"{architecture or old}.")
        writer.add_key_value(key, field.contents(), field.types[0], element)
    for each in reader.tensors:
        kept = data(each.name, np.array(each.data))
        writer.add_tensor(name(each.name), kept, raw_dtype=each.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_version_2(tmp_path: pathlib.Path, target: str):
    clean = make_gguf(tmp_path / "model.gguf", types="Q4_K")
    data = bytearray(clean.read_bytes())
    data[4:8] = struct.pack("<I", 2)
    published = tmp_path / "version2.gguf"
    published.write_bytes(data)
    same(clean, published, target)


def test_gpt_oss_of_the_library(tmp_path: pathlib.Path, target: str):
    clean = make_gguf(tmp_path / "model.gguf", architecture="gpt-oss", types="MXFP4")

    def tensor(name: str) -> str:
        name = name.replace("attn_output", "attn_out").replace("post_attention_norm", "ffn_norm")
        return name.removesuffix(".weight") if "attn_sinks" in name else name

    same(
        clean,
        rewritten(clean, tmp_path / "published.gguf", architecture="gptoss", name=tensor),
        target,
    )


def test_olmo3_of_the_library(tmp_path: pathlib.Path, target: str):
    clean = make_gguf(tmp_path / "model.gguf", architecture="olmo3", types="Q4_K")
    same(clean, rewritten(clean, tmp_path / "published.gguf", architecture="olmo3"), target)


def test_lfm2_with_the_usual_name_of_its_last_norm(tmp_path: pathlib.Path, target: str):
    clean = make_gguf(tmp_path / "model.gguf", architecture="lfm2", types="Q4_K")

    def tensor(name: str) -> str:
        return name.replace("token_embd_norm", "output_norm")

    same(clean, rewritten(clean, tmp_path / "published.gguf", name=tensor), target)


@pytest.mark.parametrize(
    ("architecture", "wrong"),
    [
        ("llama", {"llama.feed_forward_length": 96, "llama.vocab_size": 5}),
        ("llama", {"llama.attention.head_count_kv": 4, "llama.attention.key_length": 8}),
        ("lfm2", {"lfm2.feed_forward_length": 1024}),
        ("qwen3moe", {"qwen3moe.expert_feed_forward_length": 8, "qwen3moe.expert_count": 3}),
    ],
)
def test_shapes_win_over_keys(
    tmp_path: pathlib.Path, target: str, architecture: str, wrong: dict[str, Value]
):
    clean = make_gguf(tmp_path / "model.gguf", architecture=architecture, types="Q4_0")
    published = make_gguf(
        tmp_path / "wrong.gguf", architecture=architecture, types="Q4_0", metadata=wrong
    )
    same(clean, published, target)


def test_rows_without_a_text_and_texts_without_a_row(tmp_path: pathlib.Path, target: str):
    """Tables are padded for other machines; vocabularies name ids that no table has."""
    path = make_gguf(tmp_path / "model.gguf", types="Q4_0", vocabulary=700)
    tables = ("token_embd.weight", "output.weight")
    for rows in (640, 736):

        def data(name: str, data: Array, rows: int = rows) -> Array:
            return np.concatenate([data, data])[:rows] if name in tables else data

        other = rewritten(path, tmp_path / f"{rows}.gguf", data=data)
        found = converted_file(other, target=target)
        artifact = read_artifact(found)
        assert artifact.vocabulary == min(rows, 700)
        assert artifact.special.eos_id < artifact.vocabulary


def test_a_mixture_of_experts_that_is_not_known_is_refused_by_name(
    tmp_path: pathlib.Path, target: str
):
    groups: dict[str, Value] = {"deepseek2.expert_group_count": 8}
    path = make_gguf(
        tmp_path / "model.gguf", architecture="deepseek2", types="Q8_0", metadata=groups
    )
    with pytest.raises(
        Unsupported, match="deepseek2: softmax experts in 8 groups are not supported"
    ):
        converted_file(path, target=target)
