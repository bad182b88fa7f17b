"""A real daemon in a process of its own, on a free loopback port, with a home of its own."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Self

import httpx
import psutil

ROOT = pathlib.Path(__file__).parent.parent.parent
START_SECONDS = 60.0
STOP_SECONDS = 20.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class DaemonProcess:
    """Starts on entering; on leaving it is terminated and must leave no child behind."""

    def __init__(self, home: pathlib.Path, **environment: str) -> None:
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("OLLAMA_", "HEARTH_"))}
        own = {"HEARTH_HOST": f"127.0.0.1:{self.port}", "HEARTH_HOME": str(home)}
        own["HEARTH_REGISTRIES"] = "127.0.0.1"  # no test leaves this machine
        self.environment = kept | own | environment
        self.verify: ssl.SSLContext | bool = True
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def log(self) -> str:
        return (self.home.parent / f"{self.home.name}.log").read_text(errors="replace")

    def start(self) -> None:
        with (self.home.parent / f"{self.home.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "daemon", "serve"],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the daemon ended: {self.log[-3000:]}")
            with contextlib.suppress(httpx.TransportError):
                url = f"{self.url}/api/version"
                if httpx.get(url, trust_env=False, verify=self.verify).status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"the daemon did not answer: {self.log[-3000:]}")

    def children(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def child_running(self, module: str, timeout_seconds: float = 20.0) -> psutil.Process:
        """Waits for a child that runs `module`."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            for child in self.children_running(module):
                return child
            time.sleep(0.005)
        raise AssertionError(f"no child runs {module}")

    def children_running(self, module: str) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for child in self.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if module in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def kill(self) -> None:
        """The plug pulled: kill -9; then every child must leave by itself."""
        assert self.process is not None
        children = self.children()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert_all_gone(children)

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        children = self.children()
        self.process.terminate()
        self.process.wait(STOP_SECONDS)
        assert_all_gone(children)


def assert_all_gone(processes: list[psutil.Process], within_seconds: float = 30.0) -> None:
    """Who stays is named, and made to write where it hangs into the daemon's log."""
    _, alive = psutil.wait_procs(processes, timeout=within_seconds)
    names: list[str] = []
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            names.append(" ".join(process.cmdline()))
            process.send_signal(signal.SIGABRT)
    assert names == []


@contextlib.contextmanager
def running(home: pathlib.Path, **environment: str) -> Iterator[DaemonProcess]:
    with DaemonProcess(home, **environment) as daemon:
        yield daemon
