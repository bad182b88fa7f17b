"""What ends a worker must never wait for itself, whenever a signal comes."""

from __future__ import annotations

import subprocess
import sys

ARMED_IN_HANDLERS = """
import signal, socket
from backends.worker.lifeline import Watchdog

ours, theirs = socket.socketpair()
watchdog = Watchdog(ours, grace_seconds=3600)
signal.signal(signal.SIGALRM, lambda *_: watchdog.arm())
signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
for _ in range(300_000):
    watchdog.arm()
signal.setitimer(signal.ITIMER_REAL, 0)
print("through", flush=True)
"""


def test_a_signal_in_the_middle_of_arming_does_not_stop_it() -> None:
    """A daemon that is killed is both: the end of the connection, and a signal at any moment."""
    child = subprocess.run(
        [sys.executable, "-c", ARMED_IN_HANDLERS],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    assert child.stdout == "through\n"
