"""Who asks, and what that one may do: this machine, whoever has a key, or a stranger.

Only the connection says who is this machine, never a header; but a header that a proxy adds says
that somebody else stands behind a connection from loopback.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Iterable, Iterator
from typing import Any, cast

import msgspec
from litestar.types import Scope

from daemon.lan.access import has_key_form
from daemon.lan.key_ring import KeyRing

_FORWARDED = frozenset({b"x-forwarded-for", b"forwarded", b"x-real-ip"})
# A key and a user's name fit in; more is nothing of ours.
_MAX_BASIC_BYTES = 512
_STATE = "caller"


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """`key` is the name of the key, empty without one. `can_use`: everything that reads or computes.

    `can_manage`: what changes the shelf, the memory or the keys, and what tells this machine's paths.
    """

    key: str = ""
    can_use: bool = False
    can_manage: bool = False


LOCAL = Caller(can_use=True, can_manage=True)
STRANGER = Caller()
GUEST = Caller(can_use=True)


def judge(scope: Scope, keys: KeyRing, *, is_open: bool) -> Caller:
    """What `scope` may do; remembered in it for `caller_of`. `is_open`: nobody needs a key to use."""
    caller = _judge(scope, keys, is_open=is_open)
    cast("dict[str, Any]", scope).setdefault("state", {})[_STATE] = caller
    return caller


def _judge(scope: Scope, keys: KeyRing, *, is_open: bool) -> Caller:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    if is_loopback_peer(scope) and not any(name in _FORWARDED for name, _ in headers):
        return LOCAL
    key = keys.find(presented_key(headers))
    if key is not None:
        return Caller(key=key.name, can_use=True, can_manage=key.can_manage)
    return GUEST if is_open else STRANGER


def caller_of(scope: Scope) -> Caller:
    """As `judge` found; a stranger where nobody judged."""
    state: dict[str, Any] = cast("dict[str, Any]", scope).get("state", {})
    return state.get(_STATE, STRANGER)


def is_loopback_peer(scope: Scope) -> bool:
    """False without an address: a peer that has reset its connection already has none left."""
    peer = scope["client"]
    if peer is None:
        return False
    try:
        address = ipaddress.ip_address(peer[0].partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def presented_key(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The first that looks like a key of ours; empty when none does. Clients may send two kinds."""
    return next((text for text in _presented(headers) if has_key_form(text)), "")


def _presented(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[str]:
    for name, value in headers:
        if name == b"x-api-key":
            yield value.decode("latin-1").strip()
        elif name == b"authorization":
            scheme, _, rest = value.decode("latin-1").strip().partition(" ")
            if scheme.lower() == "bearer":
                yield rest.strip()
            elif scheme.lower() == "basic":
                yield _basic_password(rest.strip())


def _basic_password(encoded: str) -> str:
    """Browsers and older clients know a user and a password only; the user may be anything."""
    if len(encoded) > _MAX_BASIC_BYTES:
        return ""
    try:
        text = base64.b64decode(encoded, validate=True).decode("latin-1")
    except (binascii.Error, ValueError):
        return ""
    return text.partition(":")[2]
