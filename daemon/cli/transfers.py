"""`hearth pull` and `hearth push`: a bar per layer; Ctrl-C leaves what arrived for the next time."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from daemon.cli.client import Client
from daemon.cli.terminal import ProgressLine

EXIT_INTERRUPTED = 130


def pull_model(arguments: argparse.Namespace) -> int:
    hint = "stopped; what arrived is kept: the same command goes on from there"
    return _transfer("/api/pull", arguments, hint)


def push_model(arguments: argparse.Namespace) -> int:
    hint = "stopped; layers that arrived stay: the same command goes on from there"
    return _transfer("/api/push", arguments, hint)


def _transfer(path: str, arguments: argparse.Namespace, hint: str) -> int:
    body = {"model": arguments.model, "insecure": arguments.insecure}
    with Client() as client:
        events = client.stream(path, body)
        try:
            _show(events)
        except KeyboardInterrupt:
            # Closing the stream closes the connection: the daemon stops, unless others wait too.
            events.close()  # type: ignore[attr-defined]
            print(hint, file=sys.stderr)
            return EXIT_INTERRUPTED
    return 0


def _show(events: Iterator[dict[str, Any]]) -> None:
    line = ProgressLine()
    try:
        for event in events:
            line.show(event.get("status", ""), event.get("completed", 0), event.get("total", 0))
    finally:
        line.close()
