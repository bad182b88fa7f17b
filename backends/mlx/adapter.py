"""An adapter beside a model's matrices: two small products are added to each of theirs."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten

from backends.types import EngineError
from converters.artifact import MLX_ADAPTER_FILE, Artifact, ArtifactError, read_adapter

_A, _B = ".lora_a", ".lora_b"


class LowRank(nn.Module):
    """y = base(x) + (x aᵀ) bᵀ, the products in the wider of x's and their own type of numbers."""

    def __init__(self, base: nn.Module, a: mx.array, b: mx.array) -> None:
        super().__init__()
        self.base = base
        self.lora_a = a
        self.lora_b = b

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.base(x)  # pyright: ignore[reportCallIssue]
        added = (x @ self.lora_a.T) @ self.lora_b.T
        return y + added.astype(y.dtype)


def read_adapters(
    folders: Sequence[str], artifact: Artifact, base: pathlib.Path
) -> dict[str, mx.array]:
    """Lazy arrays by module; none without a folder. Raises EngineError. `base`: the artifact's."""
    if len(folders) > 1:
        raise EngineError("unsupported", "only one adapter is supported for one model")
    for folder in map(pathlib.Path, folders):
        try:
            adapter = read_adapter(folder, base)
            arrays = mx.load(str(folder / MLX_ADAPTER_FILE))
        except (ArtifactError, OSError, RuntimeError, ValueError) as error:
            raise EngineError("load", f"the adapter cannot be read: {error}") from error
        if (adapter.base, adapter.variant) != (artifact.source, artifact.variant):
            raise EngineError("load", f"{folder.name}: the adapter is for another model's weights")
        assert isinstance(arrays, dict)
        return arrays
    return {}


def attach(model: nn.Module, arrays: Mapping[str, mx.array]) -> None:
    """Raises EngineError("load") for an array without its counterpart or its module."""
    modules: dict[str, Any] = dict(model.named_modules())
    paths = {name.removesuffix(_A).removesuffix(_B) for name in arrays}
    changed: list[tuple[str, nn.Module]] = []
    for path in sorted(paths):
        base = modules.get(path)
        if not isinstance(base, nn.Linear | nn.QuantizedLinear):
            raise EngineError("load", f"the adapter's {path!r} is no matrix of this model")
        try:
            changed.append((path, LowRank(base, arrays[f"{path}{_A}"], arrays[f"{path}{_B}"])))
        except KeyError as error:
            raise EngineError("load", f"the adapter lacks {error}") from error
    if changed:
        model.update_modules(tree_unflatten(changed))
