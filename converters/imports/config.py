"""Typed questions to a model's `config.json`, as the family files ask them.

Every answer is of the asked type and in range, or MalformedFile names the key. Keys that name code
(`auto_map`) are never looked at.
"""

from __future__ import annotations

import math
from typing import Any

from converters.errors import MalformedFile, Unsupported

MAX_COUNT = 1 << 31
# Weights that another program has quantised, by how it says so.
_QUANTISED_KEYS = ("quantization_config", "quantization", "compression_config")


class Config:
    """One JSON object; `null` counts as absent."""

    def __init__(self, values: dict[str, Any], name: str = "config.json") -> None:
        self._values = {key: value for key, value in values.items() if value is not None}
        self._name = name

    def has(self, key: str) -> bool:
        return key in self._values

    def part(self, key: str) -> Config:
        """A nested object, empty where there is none."""
        value = self._values.get(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, "is not an object")
        return Config(value, self._name)

    def with_defaults(self, defaults: dict[str, Any]) -> Config:
        """What the model's own class fills in where the file is silent."""
        return Config(defaults | self._values, self._name)

    def first(self, *keys: str) -> str:
        """The first of the keys that is there, else the first of all."""
        return next((key for key in keys if key in self._values), keys[0])

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number from 0 to 2^31."""
        value = self._values.get(key, default)
        if value is None:
            raise self._wrong(key, "is missing")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MAX_COUNT:
            raise self._wrong(key, f"is {str(value)[:40]}: not a count")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._values.get(key, default)
        if value is None:
            raise self._wrong(key, "is missing")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "is not a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self._wrong(key, "is not a finite number")
        return number

    def numbers(self, key: str, count: int) -> list[float]:
        values = self._values.get(key)
        if not isinstance(values, list) or len(values) != count:
            raise self._wrong(key, f"is not a list of {count} numbers")
        return [Config({key: value}, self._name).number(key) for value in values]

    def counts(self, key: str) -> list[int]:
        """A list of counts; one alone makes a list of one, none an empty list."""
        value = self._values.get(key, [])
        values = value if isinstance(value, list) else [value]
        return [Config({key: each}, self._name).count(key) for each in values[:1000]]

    def text(self, key: str, default: str = "") -> str:
        value = self._values.get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "is not a text")
        return value

    def texts(self, key: str) -> list[str]:
        value = self._values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self._wrong(key, "is not a list of texts")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "is not true or false")
        return value

    def require(self, key: str, *allowed: str, default: str) -> None:
        """Raises Unsupported where a choice is not one of those known here."""
        value = self.text(key, default)
        if value not in allowed:
            raise Unsupported(f"{self._name}: {key} {value[:80]!r} is not supported")

    def refuse(self, key: str) -> None:
        """Raises Unsupported where a switch is on that has no counterpart here."""
        value = self._values.get(key)
        if value:
            raise Unsupported(f"{self._name}: {key} {str(value)[:80]} is not supported")

    def _wrong(self, key: str, how: str) -> MalformedFile:
        return MalformedFile(f"{self._name}: {key} {how}")


def check_not_quantised(values: dict[str, Any]) -> None:
    """Raises Unsupported, naming the method, for weights that another program quantised."""
    for key in _QUANTISED_KEYS:
        found = values.get(key)
        if not isinstance(found, dict) or not found:
            continue
        method = found.get("quant_method") or found.get("format") or found.get("mode")
        if key == "quantization" and "group_size" in found:
            method = "mlx"
        raise Unsupported(
            f"the weights are quantised already ({str(method or key)[:60]}): only F32, F16 and BF16"
            " safetensors are imported; take the original or a GGUF of it"
        )
