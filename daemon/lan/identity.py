"""Who this daemon is on the network: an id that never changes and a name that may have had to.

Kept in `<home>/lan.json`. The id tells two daemons apart, the name is for people; a name that was
changed because another had it is used again at the next start, unless the owner chose a new one.
"""

from __future__ import annotations

import logging
import pathlib
import re
import secrets
import socket
import unicodedata

import msgspec

from daemon.models.durable import make_folder, write_durably

# An instance name has at most 63 bytes; "-1234" must fit behind it.
_MAX_NAME_BYTES = 58
_ID = re.compile(r"[0-9a-f]{8}")
_log = logging.getLogger("hearth.lan")


class LanIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """`wanted` is the name that was asked for when `name` was the one that could be had."""

    id: str
    wanted: str
    name: str


def instance_name(configured: str) -> str:
    """A name others can see: the configured one, else from the host's. At most 58 bytes of UTF-8."""
    text = configured or f"Hearth on {socket.gethostname().partition('.')[0] or 'this machine'}"
    # A dot would end a DNS label on the wire.
    text = "".join(c for c in text if not unicodedata.category(c).startswith("C"))
    text = text.replace(".", "-").strip()
    return text.encode()[:_MAX_NAME_BYTES].decode("utf-8", "ignore").strip() or "Hearth"


def load_identity(home: pathlib.Path, configured_name: str) -> LanIdentity:
    """The remembered one, or a new one. Blocking; never fails: an unreadable file is replaced."""
    wanted = instance_name(configured_name)
    try:
        known = msgspec.json.decode(_path(home).read_bytes(), type=LanIdentity)
    except (OSError, msgspec.MsgspecError):
        known = None
    if known is None or not _ID.fullmatch(known.id):
        return LanIdentity(id=secrets.token_hex(4), wanted=wanted, name=wanted)
    # The file may have been edited by hand.
    name = instance_name(known.name) if known.wanted == wanted else wanted
    return LanIdentity(id=known.id, wanted=wanted, name=name)


def save_identity(home: pathlib.Path, identity: LanIdentity) -> None:
    """Blocking. A home that cannot be written costs the memory of the name, nothing else."""
    try:
        make_folder(home)
        write_durably(_path(home), msgspec.json.encode(identity), temporary_folder=home)
    except Exception as error:  # noqa: BLE001  (no reason to stop announcing)
        _log.warning("the name on the network could not be remembered: %s", error)


def _path(home: pathlib.Path) -> pathlib.Path:
    return home / "lan.json"
