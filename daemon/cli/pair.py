"""`hearth pair`: this device asks a daemon elsewhere for a key, and waits for its owner."""

from __future__ import annotations

import re
import socket
import sys
import time

from daemon.cli.client import Client

_ASK_EVERY_SECONDS = 2.0


def ask_for_key(name: str) -> int:
    """Prints the key alone on standard output. Raises ClientError, also when nobody says yes."""
    with Client() as client:
        asked = client.request("POST", "/api/pair", {"name": name or _own_name()})
        code = asked["code"]
        print(
            f"The owner of {client.base_url} is asked for a key. Compare the code, and say yes on its\n"
            f"dashboard or with:  hearth key approve {code}\n\n    {code[:3]} {code[3:]}\n",
            file=sys.stderr,
        )
        while True:
            claim = client.request("POST", "/api/pair/claim", {"ticket": asked["ticket"]})
            if claim["status"] == "approved":
                break
            time.sleep(_ASK_EVERY_SECONDS)
    print(f"'{claim['name']}' may {claim['scope']}. Keep the key as HEARTH_KEY:", file=sys.stderr)
    print(claim["key"])
    return 0


def _own_name() -> str:
    """The machine's name, as far as a key may be called so."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64].lstrip(".-_")
    return plain or "device"
