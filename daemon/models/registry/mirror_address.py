"""Where a mirror is, as settings write it. Standard library and msgspec only: settings are read early."""

from __future__ import annotations

import urllib.parse

import msgspec

LAN = "lan"
# Blobs are found by digest there, so the name in the path is nobody's.
_ANY_NAME = "library/blob"


class Mirror(msgspec.Struct, frozen=True):
    """`url` without a path; `key` for one that wants a key."""

    url: str
    key: str = ""

    @property
    def host(self) -> str:
        return urllib.parse.urlsplit(self.url).netloc

    def blob_url(self, digest: str) -> str:
        return f"{self.url}/v2/{_ANY_NAME}/blobs/{digest}"


def parse_mirror(text: str) -> Mirror:
    """`host:port` or `http(s)://[:KEY@]host[:port]`. Raises ValueError."""
    parts = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise ValueError(f"{parts.hostname or text!r} is no address such as http://box:11434")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = f":{parts.port}" if parts.port else ""
    return Mirror(f"{parts.scheme}://{host}{port}", urllib.parse.unquote(parts.password or ""))
