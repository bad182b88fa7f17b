"""Starting a worker's process with a socket to it; nothing about what is said over that."""

from __future__ import annotations

import asyncio
import os
import pathlib
import socket
import sys
from collections.abc import Sequence

import backends.types
from daemon.errors import LoadFailed

# -P: the working directory is no place to import from.
WORKER_COMMAND = (sys.executable, "-P", "-m", "backends.worker")
_READER_BYTES = 1 << 20


async def start_process(
    command: Sequence[str],
) -> tuple[asyncio.subprocess.Process, asyncio.StreamReader, asyncio.StreamWriter]:
    """Runs `command --fd N`, N being its end of the socket. Raises LoadFailed."""
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *command,
                "--fd",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=_environment(),
                # Ctrl-C in a terminal is for the daemon, which then ends its children itself.
                start_new_session=True,
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=_READER_BYTES)
    except OSError as error:
        ours.close()
        raise LoadFailed(f"the model runner cannot be started: {error.strerror}") from error
    except BaseException:
        ours.close()  # the child reads end of file and leaves
        raise
    return process, reader, writer


def _environment() -> dict[str, str]:
    """Ours, with our own packages found whatever the working directory is."""
    root = pathlib.Path(backends.types.__file__).parent.parent
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path}
