"""A converter makes way as a whole: its threads and the processes it has started."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from daemon.models.priority import set_background

FAMILY = """
import subprocess, sys, threading
other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
threading.Thread(target=other.wait, daemon=True).start()
print(other.pid, flush=True)
input()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the I/O class is Linux's")
def test_all_of_a_group_makes_way() -> None:
    command = [sys.executable, "-c", FAMILY]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as leader:
        assert leader.stdout is not None
        family = [psutil.Process(pid) for pid in (leader.pid, int(leader.stdout.readline()))]
        set_background(leader.pid, True)
        assert [process.nice() for process in family] == [10, 10]
        assert {process.ionice().ioclass for process in family} == {psutil.IOPRIO_CLASS_IDLE}
        leader.communicate(b"\n")
    psutil.wait_procs(family, timeout=10)


def test_a_process_that_is_gone_is_no_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""], start_new_session=True) as process:
        process.wait()
    set_background(process.pid, True)
