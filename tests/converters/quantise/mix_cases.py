"""Headers for which llama.cpp's own quantiser has told its types, and how those are written down.

`mix_tables.json` holds, per case and file type, for each role of a tensor (its name, the number of its
block replaced by `*`) its type in block after block; roles that have the usual type throughout are
left out. `reference_mixes` makes the file anew.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

from converters.gguf import GgufFile
from converters.quantise.mixes import FILE_TYPES
from tests.converters.random_headers import random_header

TOLD_FILE_TYPES = ("F16", "Q8_0", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K")

_NAMES = (
    "llama", "qwen2-tied", "qwen3", "gemma3", "phi4", "starcoder2", "command-r", "lfm2", "gpt-oss",
    "mixtral", "qwen2moe", "deepseek2", "deepseek2-joint", "qwen35moe", "bert", "nomic-bert",
    "falcon", "phi2", "hunyuan-moe", "bailingmoe2", "lfm2moe", "afmoe", "ernie4_5-moe",
    "granitehybrid", "granitehybrid-mixture", "nemotron_h", "nemotron_h_moe",
)  # fmt: skip
CASES: dict[str, Callable[[], GgufFile]] = {
    **{name: lambda name=name: random_header(name, "F16", blocks=9) for name in _NAMES},
    "llama of 70B": lambda: random_header("llama", "F16", blocks=80),
    "llama of 65B": lambda: random_header("llama", "F16", blocks=80, kv_heads=4),
    "qwen2 of 72B": lambda: random_header("qwen2", "F16", blocks=80, kv_heads=4),
    "mixtral of 16": lambda: random_header(
        "mixtral", "F16", {"llama.expert_count": 16}, blocks=9
    ),
    "falcon of 32": lambda: random_header("falcon", "F16", blocks=32),
    "rows of 192": lambda: random_header("llama", "F16", blocks=9, embedding=192, head_size=48),
    "rows of 528": lambda: random_header("llama", "F16", blocks=9, feed_forward=528),
}  # fmt: skip


def told(header: GgufFile, types: dict[str, str], file_type: str) -> dict[str, str]:
    """Role → types; `types` is by tensor name."""
    roles: dict[str, list[str]] = {}
    for tensor in sorted(header.tensors, key=lambda tensor: _block(tensor.name)):
        roles.setdefault(re.sub(r"^blk\.\d+", "blk.*", tensor.name), []).append(types[tensor.name])
    usual = FILE_TYPES[file_type].usual
    return {role: _runs(found) for role, found in sorted(roles.items()) if set(found) != {usual}}


def _runs(types: list[str]) -> str:
    counted = [(name, len(list(run))) for name, run in itertools.groupby(types)]
    return " ".join(name if count == 1 else f"{name}*{count}" for name, count in counted)


def _block(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1
