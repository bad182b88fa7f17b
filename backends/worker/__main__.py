"""`python -m backends.worker --fd N`: one end of a socket pair; standard output and error are the log."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from backends.worker.lifeline import follow_parent, prefer_for_oom_kill
from backends.worker.loop import Worker
from backends.worker.requests import BACKENDS


def main(arguments: Sequence[str], backends: Mapping[str, str] = BACKENDS) -> NoReturn:
    """Ends the process without interpreter shutdown: runtimes crash in it, and memory goes anyway."""
    parser = argparse.ArgumentParser(prog="backends.worker")
    parser.add_argument("--fd", type=int, required=True, help="the inherited socket")
    fd: int = parser.parse_args(arguments).fd
    os.set_inheritable(fd, False)
    faulthandler.enable()
    logging.basicConfig(format="worker[%(process)d] %(levelname)s %(name)s: %(message)s")
    follow_parent()
    prefer_for_oom_kill()
    code = Worker(socket.socket(fileno=fd), backends).run()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
