"""Tells systemd how the daemon is, by its notification socket; silent where there is none."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)


def notify(state: str) -> bool:
    """Sends one state, such as `READY=1` or `STOPPING=1`; False when nobody listens. Never raises."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    # An abstract address is written with @ and sent with a zero byte.
    target = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.sendto(state.encode(), target)
    except OSError as error:
        log.warning("the service manager could not be told %s: %s", state, error)
        return False
    return True
