"""One log, on stderr: the service manager keeps it and adds the time when it does."""

from __future__ import annotations

import logging
import os
import sys

_QUIET = ("httpx", "httpcore", "asyncio", "uvicorn.error")


def set_up_logging(*, debug: bool) -> None:
    """Called once, by the process's own entry point. Under journald the time is not repeated."""
    has_journal = "JOURNAL_STREAM" in os.environ
    handler = logging.StreamHandler(sys.stderr)
    prefix = "" if has_journal else "%(asctime)s "
    handler.setFormatter(logging.Formatter(prefix + "%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
