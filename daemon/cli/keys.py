"""`hearth key`: who else may use the daemon of this machine, through it or in its file."""

from __future__ import annotations

import argparse
import os
import pathlib
import socket
import sys
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from daemon.cli.client import Client, ClientError
from daemon.cli.terminal import human_time, print_table
from daemon.config import ConfigError, default_home
from daemon.errors import DaemonError
from daemon.lan.access import KeyScope, add_key, keys_path, read_keys, remove_key
from daemon.lan.addresses import local_addresses

_ROUTE = "/api/hearth/keys"
# Nothing there, an address where this machine counts as any other, or no Hearth of this build.
_GO_TO_THE_FILE = (0, 401, 403, 404, 405)
_T = TypeVar("_T")


def manage_keys(arguments: argparse.Namespace) -> int:
    """Raises ClientError."""
    with Client() as client:
        keys = _DaemonKeys(client) if _takes_keys(client) else _FileKeys()
        if arguments.action == "add":
            return _add(keys, arguments.name, "manage" if arguments.manage else "use")
        if arguments.action == "remove":
            return _remove(keys, arguments.name)
        return _list(keys)


class _DaemonKeys:
    def __init__(self, client: Client) -> None:
        self._client = client

    def listed(self) -> list[dict[str, Any]]:
        return self._client.request("GET", _ROUTE)["keys"]

    def add(self, name: str, scope: KeyScope) -> str:
        return self._client.request("POST", _ROUTE, {"name": name, "scope": scope})["key"]

    def remove(self, name: str) -> int:
        return self._client.request("DELETE", f"{_ROUTE}/{name}")["left"]


class _FileKeys:
    """A daemon of this home that runs notices the change by itself."""

    def __init__(self) -> None:
        self._home = _home()

    def listed(self) -> list[dict[str, Any]]:
        keys = self._said(lambda: read_keys(self._home))
        return [msgspec.to_builtins(key) for key in keys]

    def add(self, name: str, scope: KeyScope) -> str:
        return self._said(lambda: add_key(self._home, name, scope))

    def remove(self, name: str) -> int:
        return self._said(lambda: remove_key(self._home, name))

    def _said(self, action: Callable[[], _T]) -> _T:
        try:
            return action()
        except DaemonError as error:
            raise ClientError(error.message) from error
        except OSError as error:
            raise ClientError(f"{keys_path(self._home)}: {error.strerror}") from error


def _home() -> pathlib.Path:
    try:
        return default_home(os.environ)
    except ConfigError as error:
        raise ClientError(str(error)) from error


def _takes_keys(client: Client) -> bool:
    """Whether a daemon answers that lets us; False where this machine's file is the way."""
    try:
        client.request("GET", _ROUTE)
    except ClientError as error:
        host = urlsplit(client.base_url).hostname or ""
        if error.status not in _GO_TO_THE_FILE or not _is_this_machine(host):
            raise
        why = "takes no keys from here" if error.status else "does not answer"
        # A service has a home of its own, which is seldom that of the user who types this.
        note = f"{client.base_url} {why}; this is about {keys_path(_home())}"
        print(f"Note: {note}", file=sys.stderr)
        return False
    return True


def _is_this_machine(host: str) -> bool:
    try:
        found = {str(one[4][0]) for one in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ip.startswith("127.") or ip == "::1" or ip in local_addresses() for ip in found)


def _add(keys: _DaemonKeys | _FileKeys, name: str, scope: KeyScope) -> int:
    key = keys.add(name, scope)
    print("This is shown once; only its digest is kept:", file=sys.stderr)
    print(key)
    return 0


def _list(keys: _DaemonKeys | _FileKeys) -> int:
    rows = [
        [
            key["name"],
            key["scope"],
            human_time(key["created"]),
            human_time(key["last_used"]) if key["last_used"] else "never",
        ]
        for key in keys.listed()
    ]
    print_table(["NAME", "SCOPE", "CREATED", "LAST USED"], rows)
    return 0


def _remove(keys: _DaemonKeys | _FileKeys, name: str) -> int:
    left = keys.remove(name)
    print(f"removed '{name}'")
    if not left:
        print("No key is left: beyond this machine nobody gets in.", file=sys.stderr)
    return 0
