"""`keep_alive` as clients write it: absent, a number of seconds, or a duration (contract.md §2.2)."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET

from daemon.api.exchange import KeepAlive
from daemon.durations import keep_alive_seconds, parse_duration_ns
from daemon.errors import Invalid

_GO_TYPES: dict[type, str] = {bool: "bool", list: "[]interface {}", dict: "map[string]interface {}"}
# What "forever" is stored as elsewhere, 292 years; more is the same.
_MOST_SECONDS = 9_223_372_036.0


def parse_keep_alive(value: Any) -> KeepAlive:
    """Raises Invalid with Go's texts."""
    if value is None:
        return UNSET
    if isinstance(value, str):
        try:
            return keep_alive_seconds(parse_duration_ns(value))
        except ValueError as error:
            raise Invalid(str(error)) from None
    if type(value) in _GO_TYPES:
        raise Invalid(f"Unsupported type: '{_GO_TYPES[type(value)]}'")
    is_forever = value < 0 or value > _MOST_SECONDS
    return None if is_forever else float(value)
