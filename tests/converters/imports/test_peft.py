"""PEFT's folders as GGUF adapters: the same numbers, in the rows and with the scale of the base."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGUFReader
from safetensors.numpy import save_file

from converters.adapters.lora import AdapterMismatch
from converters.artifact import MADE_GGUF
from converters.errors import ConversionError, MalformedFile, Unsupported
from converters.gguf import read_header
from converters.imports.folder import ModelFiles
from converters.imports.peft import CONFIG, WEIGHTS, import_adapter
from tests.converters.test_main import command, run
from tests.models.random_adapter import Matrices, make_adapter
from tests.models.random_gguf import make_gguf
from tests.parity.converted import SilentProgress

HEADS, KV_HEADS = 4, 2
MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
Tensors = dict[str, npt.NDArray[np.float32]]


def paired(rows: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Halves of each head woven into neighbours: what llama.cpp's converter does to q and k."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, rows.shape[1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


class Folder:
    """A PEFT folder for a base, and the same matrices under GGUF's names and in its order of rows."""

    def __init__(
        self,
        folder: pathlib.Path,
        base: pathlib.Path,
        modules: dict[str, str],
        *,
        prefix: str = "base_model.model.model.",
        rank: int = 4,
        blocks: int = 2,
        heads: int = HEADS,
        kv_heads: int = KV_HEADS,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.path, self.base = folder, base
        self.tensors: Tensors = {}
        self.matrices: Matrices = {}
        shapes = {tensor.name: tensor.shape for tensor in read_header(base).tensors}
        generator = np.random.default_rng(11)
        is_paired = read_header(base).architecture == "llama"
        for block in range(blocks):
            for module, role in modules.items():
                name = f"blk.{block}.{role}.weight"
                rows, columns = shapes[name]
                a = generator.standard_normal((rank, columns)).astype(np.float32)
                b = generator.standard_normal((rows, rank)).astype(np.float32)
                stem = f"{prefix}layers.{block}.{module}.lora_"
                self.tensors |= {f"{stem}A.weight": a, f"{stem}B.weight": b}
                turned = {"attn_q": heads, "attn_k": kv_heads}.get(role, 0)
                self.matrices[name] = a, paired(b, turned) if turned and is_paired else b

    def write(self, tensors: Tensors | None = None, **config: Any) -> pathlib.Path:
        save_file(self.tensors if tensors is None else tensors, self.path / WEIGHTS)
        values = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"} | config
        (self.path / CONFIG).write_text(json.dumps(values))
        return self.path


def imported(folder: pathlib.Path, base: pathlib.Path) -> pathlib.Path:
    final = folder / "imported"
    paths = {name: folder / name for name in (CONFIG, WEIGHTS) if (folder / name).exists()}
    with contextlib.ExitStack() as stack:
        import_adapter(ModelFiles(paths, stack), read_header(base), final, SilentProgress())
    return final / MADE_GGUF


def stored(path: pathlib.Path) -> Tensors:
    return {
        tensor.name: np.array(tensor.data, np.float32).reshape(tuple(reversed(tensor.shape)))
        for tensor in GGUFReader(path).tensors
    }


def alpha_of(path: pathlib.Path) -> float:
    value = read_header(path).metadata["adapter.lora.alpha"]
    assert isinstance(value, float)
    return value


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return make_gguf(tmp_path_factory.mktemp("base") / "base.gguf", types="F32")


@pytest.mark.parametrize(
    ("architecture", "modules", "prefix"),
    [
        ("llama", MODULES, "base_model.model.model."),
        ("qwen2", MODULES, "base_model.model.model."),
        ("qwen3", MODULES, "base_model.model.model."),
        (
            "phi4",
            {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"},
            "base_model.model.model.",
        ),
        ("gemma3", MODULES, "base_model.model.model.language_model."),
        ("gemma3", MODULES, "base_model.model.language_model.model."),
    ],
)
def test_it_is_the_gguf_adapter_of_the_same_matrices(
    tmp_path: pathlib.Path, architecture: str, modules: dict[str, str], prefix: str
):
    base = make_gguf(tmp_path / "base.gguf", architecture=architecture, types="F32")
    folder = Folder(tmp_path / "peft", base, modules, prefix=prefix)
    found = imported(folder.write(), base)
    expected = make_adapter(tmp_path / "made.gguf", base, folder.matrices, alpha=8.0)
    assert read_header(found).metadata == read_header(expected).metadata
    ours, theirs = stored(found), stored(expected)
    assert ours.keys() == theirs.keys()
    for name, numbers in theirs.items():
        assert (ours[name] == numbers).all(), name


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_types_stay_as_they_are(tmp_path: pathlib.Path, llama: pathlib.Path, dtype: type):
    folder = Folder(tmp_path / "peft", llama, {"self_attn.q_proj": "attn_q"})
    tensors: Any = {name: numbers.astype(dtype) for name, numbers in folder.tensors.items()}
    found = imported(folder.write(tensors), llama)
    kinds = {tensor.type_name for tensor in read_header(found).tensors}
    assert kinds == {"F16" if dtype is np.float16 else "F32"}
    a, _ = folder.matrices["blk.0.attn_q.weight"]
    assert (stored(found)["blk.0.attn_q.weight.lora_a"] == a.astype(dtype)).all()


@pytest.mark.parametrize(
    ("config", "alpha", "scales"),
    [
        ({}, 8.0, {"q": 2.0, "v": 2.0}),
        ({"use_rslora": True}, 16.0, {"q": 4.0, "v": 4.0}),
        ({"alpha_pattern": {"v_proj": 2}}, 8.0, {"q": 2.0, "v": 0.5}),
        ({"alpha_pattern": {"layers.1.self_attn.v_proj": 2}}, 8.0, {"q": 2.0, "v": 0.5}),
    ],
)
def test_scales(
    tmp_path: pathlib.Path,
    llama: pathlib.Path,
    config: dict[str, Any],
    alpha: float,
    scales: dict[str, float],
):
    """alpha / rank, alpha / √rank, and by module; in all GGUF's alpha over the rank times B."""
    modules = {"self_attn.q_proj": "attn_q", "self_attn.v_proj": "attn_v"}
    folder = Folder(tmp_path / "peft", llama, modules)
    found = imported(folder.write(**config), llama)
    assert alpha_of(found) == alpha
    for role, scale in scales.items():
        name = f"blk.1.attn_{role}.weight"
        given = stored(found)[f"{name}.lora_b"] * np.float32(alpha / 4)
        assert np.allclose(given, folder.matrices[name][1] * np.float32(scale), rtol=1e-6)


def test_ranks_of_a_pattern_are_the_tensors_own(tmp_path: pathlib.Path, llama: pathlib.Path):
    folder = Folder(tmp_path / "peft", llama, {"self_attn.q_proj": "attn_q"})
    other = Folder(tmp_path / "other", llama, {"self_attn.v_proj": "attn_v"}, rank=9)
    both = folder.tensors | other.tensors
    found = imported(folder.write(both, use_rslora=True, rank_pattern={"v_proj": 9}), llama)
    assert alpha_of(found) == pytest.approx(8 * math.sqrt(4))
    factor = (8 * math.sqrt(9)) / (8 * math.sqrt(4))
    given = stored(found)["blk.0.attn_v.weight.lora_b"]
    expected = other.matrices["blk.0.attn_v.weight"][1] * np.float32(factor)
    assert np.allclose(given, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias 'lora_only'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"target_parameters": ["experts.up"]}, "target_parameters"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights 'loftq'"),
        ({"alpha_pattern": {r"(a+)+$": 3}}, "alpha_pattern"),
    ],
)
def test_what_a_pair_cannot_say_is_refused_by_name(
    tmp_path: pathlib.Path, llama: pathlib.Path, config: dict[str, Any], says: str
):
    folder = Folder(tmp_path / "peft", llama, {"self_attn.q_proj": "attn_q"})
    path = folder.write(**config)
    with pytest.raises(Unsupported) as caught:
        imported(path, llama)
    assert says in str(caught.value)
    assert sorted(each.name for each in path.iterdir()) == [CONFIG, WEIGHTS]


PREFIX = "base_model.model.model.layers.0."
SQUARE = np.zeros((4, 256), np.float32)


@pytest.mark.parametrize(
    ("extra", "kind", "says"),
    [
        ({f"{PREFIX}self_attn.v_proj.lora_A.weight": SQUARE}, MalformedFile, "one half"),
        ({f"{PREFIX}self_attn.v_proj.lora_magnitude_vector": SQUARE}, Unsupported, "no part"),
        ({f"{PREFIX}self_attn.v_proj.bias": SQUARE}, Unsupported, "no part"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": SQUARE}, Unsupported, "no part"),
        (
            {
                f"{PREFIX}mlp.experts.0.up_proj.lora_A.weight": SQUARE,
                f"{PREFIX}mlp.experts.0.up_proj.lora_B.weight": SQUARE.T,
            },
            Unsupported,
            "experts",
        ),
        (
            {
                f"{PREFIX}cross_attn.v_proj.lora_A.weight": SQUARE,
                f"{PREFIX}cross_attn.v_proj.lora_B.weight": SQUARE.T,
            },
            Unsupported,
            "no place",
        ),
        (
            {
                "base_model.model.model.layers.7.mlp.up_proj.lora_A.weight": SQUARE,
                "base_model.model.model.layers.7.mlp.up_proj.lora_B.weight": SQUARE.T,
            },
            AdapterMismatch,
            "blk.7.ffn_up.weight",
        ),
        (
            {
                f"{PREFIX}mlp.up_proj.lora_A.weight": SQUARE,
                f"{PREFIX}mlp.up_proj.lora_B.weight": SQUARE.T,
            },
            AdapterMismatch,
            "shape",
        ),
    ],
)
def test_tensors_without_a_place(
    tmp_path: pathlib.Path,
    llama: pathlib.Path,
    extra: Tensors,
    kind: type[ConversionError],
    says: str,
):
    folder = Folder(tmp_path / "peft", llama, {"self_attn.q_proj": "attn_q"})
    tensors = folder.tensors | {name: np.ascontiguousarray(a) for name, a in extra.items()}
    with pytest.raises(kind, match=says):
        imported(folder.write(tensors), llama)


def test_a_folder_that_is_no_adapter(tmp_path: pathlib.Path, llama: pathlib.Path):
    folder = Folder(tmp_path / "peft", llama, {"self_attn.q_proj": "attn_q"}).write()
    (folder / WEIGHTS).write_bytes(b"\xff" * 100)
    with pytest.raises(ConversionError):
        imported(folder, llama)
    (folder / WEIGHTS).unlink()
    with pytest.raises(MalformedFile, match="pickled"):
        imported(folder, llama)
    (folder / CONFIG).unlink()
    with pytest.raises(ConversionError):
        imported(folder, llama)


def test_the_command(tmp_path: pathlib.Path, llama: pathlib.Path):
    folder = Folder(tmp_path / "peft", llama, MODULES).write()
    final = tmp_path / "out" / "imported"
    files = [part for name in (CONFIG, WEIGHTS) for part in ("--file", name, folder / name)]
    code, lines = run(command("import-adapter", *files, "--base", llama, "--output", final))
    assert (code, lines[-1]["done"]) == (0, True), lines
    assert read_header(final / MADE_GGUF).size == lines[-1]["file_bytes"]
