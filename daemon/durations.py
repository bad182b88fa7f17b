"""Durations as clients and environments write them ("1h30m", "-1s"), in whole nanoseconds.

The grammar is that of Go's `time.ParseDuration`, error texts included, because clients print them.
"""

from __future__ import annotations

import re
from fractions import Fraction

SECOND_NS = 1_000_000_000
MAX_NS = 2**63 - 1
# No text that means something is longer; bounds the work on hostile input.
_MAX_TEXT = 256

_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": SECOND_NS,
    "m": 60 * SECOND_NS,
    "h": 3600 * SECOND_NS,
}
_TERM = re.compile(r"(?P<number>[0-9]+\.?[0-9]*|\.[0-9]+)(?P<unit>[^0-9.]*)")


def _go_quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _term_ns(match: re.Match[str], whole: str) -> Fraction:
    unit = match["unit"]
    if not unit:
        raise ValueError(f"time: missing unit in duration {_go_quote(whole)}")
    if unit not in _UNITS_NS:
        raise ValueError(f"time: unknown unit {_go_quote(unit)} in duration {_go_quote(whole)}")
    return Fraction(match["number"].rstrip(".")) * _UNITS_NS[unit]


def parse_duration_ns(text: str) -> int:
    """Nanoseconds of a signed Go duration. Raises ValueError with Go's own text."""
    unsigned = text[1:] if text[:1] in ("+", "-") else text
    if unsigned == "0":
        return 0
    total, position = Fraction(0), 0
    while position < len(unsigned) <= _MAX_TEXT:
        match = _TERM.match(unsigned, position)
        if match is None:
            break
        total += _term_ns(match, text)
        position = match.end()
    if not unsigned or position != len(unsigned) or total > MAX_NS:
        raise ValueError(f"time: invalid duration {_go_quote(text[:_MAX_TEXT])}")
    return -int(total) if text.startswith("-") else int(total)


def keep_alive_seconds(duration_ns: int) -> float | None:
    """Seconds of a keep-alive; None is forever, which is what every negative duration means."""
    return None if duration_ns < 0 else duration_ns / SECOND_NS
