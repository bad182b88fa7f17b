"""`hearth key`: who else may use the daemon of this machine, through it or in its file."""

from __future__ import annotations

import argparse
import os
import pathlib
import socket
import sys
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from daemon.cli.client import Client, ClientError
from daemon.cli.terminal import human_time, print_table
from daemon.config import ConfigError, default_home
from daemon.durations import parse_duration_ns
from daemon.errors import DaemonError
from daemon.lan.access import KeyScope, add_key, keys_path, read_keys, remove_key
from daemon.lan.addresses import local_addresses

_ROUTE = "/api/hearth/keys"
# Nothing there, an address where this machine counts as any other, or no Hearth of this build.
_GO_TO_THE_FILE = (0, 401, 403, 404, 405)
_PAIRS = "/api/hearth/pairs"
_DAY = 86400.0
_T = TypeVar("_T")


def manage_keys(arguments: argparse.Namespace) -> int:
    """Raises ClientError."""
    with Client() as client:
        if arguments.action in _PAIRING:
            return _PAIRING[arguments.action](client, arguments)
        keys = _DaemonKeys(client) if _takes_keys(client) else _FileKeys()
        if arguments.action == "add":
            lifetime = _seconds(arguments.expires) if arguments.expires else None
            return _add(keys, arguments.name, _scope(arguments), lifetime)
        if arguments.action == "remove":
            return _remove(keys, arguments.name)
        return _list(keys)


class _DaemonKeys:
    def __init__(self, client: Client) -> None:
        self._client = client

    def listed(self) -> list[dict[str, Any]]:
        return self._client.request("GET", _ROUTE)["keys"]

    def add(self, name: str, scope: KeyScope, lifetime_seconds: float | None) -> str:
        body = {"name": name, "scope": scope, "lifetime_seconds": lifetime_seconds}
        return self._client.request("POST", _ROUTE, body)["key"]

    def remove(self, name: str) -> int:
        return self._client.request("DELETE", f"{_ROUTE}/{name}")["left"]


class _FileKeys:
    """A daemon of this home that runs notices the change by itself."""

    def __init__(self) -> None:
        self._home = _home()

    def listed(self) -> list[dict[str, Any]]:
        keys = self._said(lambda: read_keys(self._home))
        return [msgspec.to_builtins(key) for key in keys]

    def add(self, name: str, scope: KeyScope, lifetime_seconds: float | None) -> str:
        return self._said(lambda: add_key(self._home, name, scope, lifetime_seconds))

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


def _scope(arguments: argparse.Namespace) -> KeyScope:
    return "manage" if arguments.manage else "use"


def _seconds(text: str) -> float:
    """Days too, which Go's durations do not know. Raises ClientError."""
    days, sign, rest = text.partition("d")
    if not sign:
        days, rest = "", text
    try:
        return (float(days) * _DAY if days else 0.0) + (
            parse_duration_ns(rest) / 1e9 if rest else 0.0
        )
    except (ValueError, OverflowError) as error:
        raise ClientError(
            f"--expires {text[:40]!r} is no time such as 30d, 12h or 1h30m"
        ) from error


def _add(
    keys: _DaemonKeys | _FileKeys, name: str, scope: KeyScope, lifetime_seconds: float | None
) -> int:
    key = keys.add(name, scope, lifetime_seconds)
    print("This is shown once; only its digest is kept:", file=sys.stderr)
    print(key)
    return 0


def _list(keys: _DaemonKeys | _FileKeys) -> int:
    rows = [
        [
            key["name"],
            key["scope"],
            human_time(key["created"]),
            human_time(key["last_used"]) if key.get("last_used") else "never",
            _end(key.get("expires")),
        ]
        for key in keys.listed()
    ]
    print_table(["NAME", "SCOPE", "CREATED", "LAST USED", "EXPIRES"], rows)
    return 0


def _end(moment: str | None) -> str:
    if moment is None:
        return "never"
    text = human_time(moment, future=True)
    return text if text.endswith("now") else "expired"


def _remove(keys: _DaemonKeys | _FileKeys, name: str) -> int:
    left = keys.remove(name)
    print(f"removed '{name}'")
    if not left:
        print("No key is left: beyond this machine nobody gets in.", file=sys.stderr)
    return 0


def _pending(client: Client, _: argparse.Namespace) -> int:
    devices = client.request("GET", _PAIRS)["devices"]
    rows = [
        [
            f"{one['code'][:3]} {one['code'][3:]}",
            one["name"],
            one["address"],
            f"{one['age_seconds']:.0f} s",
        ]
        for one in devices
    ]
    print_table(["CODE", "DEVICE", "ADDRESS", "AGE"], rows)
    return 0


def _approve(client: Client, arguments: argparse.Namespace) -> int:
    body = {"code": arguments.code, "scope": _scope(arguments), "name": arguments.name}
    name = client.request("POST", f"{_PAIRS}/approve", body)["name"]
    print(f"the device gets the key '{name}'")
    return 0


def _refuse(client: Client, arguments: argparse.Namespace) -> int:
    client.request("DELETE", f"{_PAIRS}/{quote(arguments.code, safe='')}")
    print("the device gets no key")
    return 0


# These concern the daemon that runs: who asks is in its memory only.
_PAIRING: dict[str, Callable[[Client, argparse.Namespace], int]] = {
    "pending": _pending,
    "approve": _approve,
    "refuse": _refuse,
}
