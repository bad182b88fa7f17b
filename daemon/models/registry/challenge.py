"""`WWW-Authenticate` of a registry, and the address where its token is fetched. Pure."""

from __future__ import annotations

import re
import urllib.parse

import msgspec

from daemon.errors import Internal

_PART = re.compile(r'(realm|service|scope)="(.*?)"(?=\s*,|\s*$)')
MAX_HEADER_CHARACTERS = 8192


class Challenge(msgspec.Struct, frozen=True):
    realm: str
    service: str = ""
    scopes: tuple[str, ...] = ()


def parse_challenge(header: str, registry_host: str) -> Challenge:
    """Raises Internal when there is no realm, or one on another host: a token goes nowhere else."""
    parts: dict[str, str] = dict(_PART.findall(header[:MAX_HEADER_CHARACTERS]))
    realm = parts.get("realm", "")
    url = urllib.parse.urlsplit(realm)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise Internal("unauthorized: access denied")
    if url.netloc.lower() != registry_host.lower():
        raise Internal(f'realm host "{url.netloc}" does not match original host "{registry_host}"')
    return Challenge(realm, parts.get("service", ""), tuple(parts.get("scope", "").split()))


def token_url(challenge: Challenge, *, unix_seconds: int, nonce: str) -> str:
    """The realm with its query; keys sorted, as the signature covers this very text."""
    query = [("nonce", nonce), *(("scope", scope) for scope in challenge.scopes)]
    query += [("service", challenge.service), ("ts", str(unix_seconds))]
    separator = "&" if urllib.parse.urlsplit(challenge.realm).query else "?"
    return f"{challenge.realm}{separator}{urllib.parse.urlencode(sorted(query))}"
