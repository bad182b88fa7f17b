"""What `config.json` says of a vision tower on MLX: `converters.targets.mlx.vision` writes it.

Modules are named by the stems of their arrays; "" and None stand for what is not there.
"""

from __future__ import annotations

import pathlib
from typing import Literal

import msgspec

from backends.types import EngineError
from converters.artifact import MLX_CONFIG_FILE

MODEL_TYPE = "hearth_vision"
Activation = Literal["gelu", "gelu_tanh", "gelu_quick", "silu"]


class NormForm(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    epsilon: float
    is_centered: bool


class AttentionForm(msgspec.Struct, frozen=True, kw_only=True):
    """`inputs`: query, key and value, or the one that gives all three behind each other."""

    heads: int
    inputs: tuple[str, ...]
    output: str
    query_norm: NormForm | None
    key_norm: NormForm | None
    has_norm_per_head: bool
    is_windowed: bool


class PerceptronForm(msgspec.Struct, frozen=True, kw_only=True):
    activation: Activation
    gate: str
    up: str
    down: str


class BlockForm(msgspec.Struct, frozen=True, kw_only=True):
    attention_norm: NormForm
    attention: AttentionForm
    attention_scale: str
    feed_forward_norm: NormForm
    feed_forward: PerceptronForm
    feed_forward_scale: str


class StepForm(msgspec.Struct, frozen=True, kw_only=True):
    """As the Structs of `converters.projectors.tower`, by `kind`."""

    kind: Literal["pool", "shuffle", "group", "bend", "norm", "turned", "linear"]
    grid: int = 0
    side: int = 0
    count: int = 0
    is_interleaved: bool = False
    activation: Activation = "gelu"
    norm: NormForm | None = None
    path: str = ""


class TapForm(msgspec.Struct, frozen=True, kw_only=True):
    block: int
    steps: tuple[StepForm, ...]


class CodesForm(msgspec.Struct, frozen=True, kw_only=True):
    """How a matrix's codes are packed."""

    group_size: int
    bits: int
    mode: str


class TowerForm(msgspec.Struct, frozen=True, kw_only=True):
    model_type: str
    torch_dtype: Literal["float16", "float32"]
    patches: tuple[str, ...]
    class_token: str
    places: str
    has_mixed_places: bool
    rotation: Literal["", "halves", "neighbours"]
    first_norm: NormForm | None
    blocks: tuple[BlockForm, ...]
    last_norm: NormForm | None
    steps: tuple[StepForm, ...]
    taps: tuple[TapForm, ...]
    row_break: str
    quantization: dict[str, CodesForm]


def read_tower_form(folder: pathlib.Path) -> TowerForm:
    """Raises EngineError("load")."""
    try:
        form = msgspec.json.decode((folder / MLX_CONFIG_FILE).read_bytes(), type=TowerForm)
    except (OSError, msgspec.MsgspecError) as error:
        raise EngineError("load", f"{folder.name}: not a vision tower for MLX ({error})") from error
    if form.model_type != MODEL_TYPE:
        raise EngineError("load", f"{folder.name}: MLX has no vision tower {form.model_type!r}")
    return form
