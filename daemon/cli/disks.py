"""`hearth du` and `hearth adopt`: what lies where, and letting `rm` delete from another's folder."""

from __future__ import annotations

import pathlib
from typing import Any

from converters.artifact import adapted_base
from daemon.cli.client import Client
from daemon.cli.terminal import human_bytes, print_table


def print_disk_use() -> int:
    with Client() as client:
        use = client.request("GET", "/api/hearth/du")
    _print_places(use)
    _print_models(use["models"])
    _print_artifacts(use["artifacts"])
    _print_duplicates(use["duplicates"])
    for key, text in (("unmentioned", "in blobs that no model uses"), ("partial", "in transfers")):
        if use[key]:
            print(f"{human_bytes(use[key])} {text}")
    return 0


def adopt(path: str) -> int:
    root = path if path == "default" else str(pathlib.Path(path).expanduser().absolute())
    with Client() as client:
        answer = client.request("POST", "/api/hearth/adopt", {"path": root})
    print(f"adopted {answer['adopted']}: `hearth rm` now deletes from it")
    return 0


def _print_places(use: dict[str, Any]) -> None:
    rows = [
        [p["root"], p["kind"], str(p["models"]), human_bytes(p["size"]), human_bytes(p["free"])]
        for p in use["places"]
    ]
    print_table(["PLACE", "KIND", "MODELS", "SIZE", "FREE"], rows)


def _print_models(models: list[dict[str, Any]]) -> None:
    if models:
        print()
        rows = [[m["name"], human_bytes(m["size"]), human_bytes(m["shared"])] for m in models]
        print_table(["MODEL", "SIZE", "SHARED"], rows)


def _print_artifacts(artifacts: list[dict[str, Any]]) -> None:
    if artifacts:
        print()
        rows = [
            [a["source"][:12], _target(a["target"]), human_bytes(a["size"]), _users(a)]
            for a in artifacts
        ]
        print_table(["CONVERTED", "TARGET", "SIZE", "FOR"], rows)


def _target(variant: str) -> str:
    """An adapter's names its base too."""
    base = adapted_base(variant)
    return variant.replace(base, base[:12]) if base else variant


def _users(artifact: dict[str, Any]) -> str:
    if artifact["models"]:
        return ", ".join(artifact["models"])
    since = artifact["unreachable_since"]
    return f"nothing here since {since[:10]}" if since else "nothing here"


def _print_duplicates(duplicates: list[dict[str, Any]]) -> None:
    for duplicate in duplicates:
        print(f"\n{human_bytes(duplicate['wasted'])} in copies of {duplicate['digest'][:12]}:")
        for path in duplicate["paths"]:
            print(f"  {path}")
