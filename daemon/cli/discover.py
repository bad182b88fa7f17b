"""`hearth discover`: who announces itself on this network. What they say of themselves is display text."""

from __future__ import annotations

import asyncio
import json

from daemon.cli.terminal import print_table
from daemon.lan.browse import discover


def print_peers(timeout_seconds: float, *, as_json: bool) -> int:
    peers = asyncio.run(discover(timeout_seconds))
    if as_json:
        for peer in peers:
            facts = {"name": peer.name, "addresses": peer.addresses, "port": peer.port}
            print(json.dumps(facts | {"properties": peer.properties}))
        return 0
    rows = [
        [
            peer.name,
            " ".join(f"{address}:{peer.port}" for address in peer.addresses[:2]),
            peer.properties.get("v", ""),
            peer.properties.get("be", ""),
            peer.properties.get("auth", ""),
        ]
        for peer in peers
    ]
    print_table(["NAME", "ADDRESS", "VERSION", "BACKEND", "AUTH"], rows)
    return 0
