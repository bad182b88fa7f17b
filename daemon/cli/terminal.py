"""What the terminal shows: sizes, times, tables and a progress line that redraws itself."""

from __future__ import annotations

import datetime
import os
import shutil
import sys
import time

_REDRAW_SECONDS = 0.1


def human_bytes(count: int) -> str:
    """Decimal units, as this field's lists show them."""
    power = 0
    while power < 4 and count >= 1000 ** (power + 1):
        power += 1
    value = count / 1000**power
    unit = ("B", "KB", "MB", "GB", "TB")[power]
    return f"{value:.0f} {unit}" if value >= 10 or power == 0 else f"{value:.1f} {unit}"


def human_time(moment: str, *, future: bool = False) -> str:
    """A wire time as a distance from now."""
    seconds = (parse_time(moment) - datetime.datetime.now(datetime.UTC)).total_seconds()
    if future and seconds > 50 * 365 * 86400:
        return "Forever"
    if future and seconds < 0:
        return "Stopping..."
    amount = _distance(abs(seconds))
    return f"{amount} from now" if future else f"{amount} ago"


def parse_time(moment: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(moment)


def _distance(seconds: float) -> str:
    for size, word in ((604800, "week"), (86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {word}{'' if count == 1 else 's'}"
    count = int(seconds)
    return f"{count} second{'' if count == 1 else 's'}"


def print_table(header: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("    ".join(cells).rstrip())


class ProgressLine:
    """One line on stderr per status. Redraws on a terminal; elsewhere prints each status once."""

    def __init__(self) -> None:
        self._status = ""
        self._drawn_at = 0.0
        self._is_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def show(self, status: str, completed: int = 0, total: int = 0) -> None:
        is_new = status != self._status
        if not self._is_terminal:
            if is_new:
                print(status, file=sys.stderr)
            self._status = status
            return
        if is_new and self._status:
            print(file=sys.stderr)
        now = time.monotonic()
        if is_new or completed >= total or now - self._drawn_at > _REDRAW_SECONDS:
            print(
                f"\r{self._bar(status, completed, total)}\x1b[K",
                end="",
                file=sys.stderr,
                flush=True,
            )
            self._drawn_at = now
        self._status = status

    def close(self) -> None:
        if self._is_terminal and self._status:
            print(file=sys.stderr)
        self._status = ""

    @staticmethod
    def _bar(status: str, completed: int, total: int) -> str:
        if not total:
            return status
        share = min(completed / total, 1.0)
        amounts = f"{human_bytes(completed)}/{human_bytes(total)}"
        columns = shutil.get_terminal_size().columns
        width = max(0, min(40, columns - len(status) - len(amounts) - 12))
        filled = round(share * width)
        return f"{status} {share:4.0%} ▕{'█' * filled}{' ' * (width - filled)}▏ {amounts}"
