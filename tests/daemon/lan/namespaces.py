"""Two hosts on one wire: network namespaces joined by a pair of virtual cables."""

from __future__ import annotations

import json
import os
import pathlib
import queue
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent.parent.parent
CHILD = pathlib.Path(__file__).with_name("network_child.py")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)


def why_impossible() -> str:
    """Empty where namespaces can be made; else the reason that a skipped test gives."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("ip") is None:
        return "needs the ip command"
    name = f"hearth-try-{secrets.token_hex(3)}"
    try:
        ip("netns", "add", name)
        ip("netns", "del", name)
    except (subprocess.SubprocessError, OSError) as error:
        return f"network namespaces are forbidden here: {error}"
    return ""


class Child:
    """A process in a namespace; `heard` gives its JSON lines, one at a time."""

    def __init__(self, namespace: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, sys.executable, str(CHILD), *arguments],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            text=True,
        )
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(json.loads(line))
        self.process.stdout.close()

    def heard(self, seconds: float = 15.0, **wanted: object) -> dict[str, Any]:
        """The next line that has these values. Raises queue.Empty after `seconds`."""
        end = time.monotonic() + seconds
        while True:
            line = self._lines.get(timeout=max(0.001, end - time.monotonic()))
            if wanted.items() <= line.items():
                return line

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(10)


class TwoHosts:
    """`a` has 10.77.0.1 and fd77::1, `b` has 10.77.0.2 and fd77::2, both on an interface `lan0`."""

    def __init__(self) -> None:
        token = secrets.token_hex(3)
        self.a, self.b = f"hearth-a-{token}", f"hearth-b-{token}"
        self._children: list[Child] = []
        for name in (self.a, self.b):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", "lan0", "netns", self.a, "type", "veth",
           "peer", "name", "lan0", "netns", self.b)  # fmt: skip
        for number, name in enumerate((self.a, self.b), 1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "lan0")
            ip("-n", name, "addr", "add", f"fd77::{number}/64", "dev", "lan0", "nodad")
            ip("-n", name, "link", "set", "lan0", "up")
            ip("-n", name, "route", "add", "224.0.0.0/4", "dev", "lan0")

    def run(self, namespace: str, *arguments: str) -> Child:
        child = Child(namespace, *arguments)
        self._children.append(child)
        return child

    def close(self) -> None:
        for child in self._children:
            if child.process.poll() is None:
                child.process.kill()
                child.process.wait()
        for name in (self.a, self.b):
            ip("netns", "del", name)
