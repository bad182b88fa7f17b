"""The keys that let others use this daemon: named, with a scope, kept as digests in `<home>/keys.json`.

A key has 256 random bits, so one SHA-256 of it is enough: there is nothing to guess. The file is
replaced whole, under a lock that every writer takes. One that is damaged is an error that is said,
never an empty list. All blocking but quick; callers on the event loop go through a thread.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import pathlib
import re
import secrets
import stat
from collections.abc import Generator, Mapping
from typing import Annotated, Literal

import msgspec

from daemon.errors import Internal, Invalid, NotFound
from daemon.models.durable import locked, make_folder, write_durably

KeyScope = Literal["use", "manage"]
Moment = Annotated[datetime.datetime, msgspec.Meta(tz=True)]
MAX_KEYS = 256
MAX_FILE_BYTES = 1 << 18
_PREFIX = "hk_"
_SECRET_BYTES = 32
_FORM = re.compile(rf"{_PREFIX}[A-Za-z0-9_-]{{43}}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_VERSION = 1
_MOST_LIFETIME_SECONDS = 100 * 365 * 86400


class KeysDamaged(Internal):
    """keys.json is there and cannot be used; the message says why and what to do."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"keys.json in HEARTH_HOME cannot be used: {why}; "
            "repair it, or remove it and add the keys anew"
        )


class AccessKey(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What is kept of a key: `digest` is SHA-256 in hexadecimal. Times are UTC, whole seconds.

    From `expires` on it is refused; None: until it is removed.
    """

    name: str
    digest: str
    scope: KeyScope
    created: Moment
    last_used: Moment | None = None
    expires: Moment | None = None

    @property
    def can_manage(self) -> bool:
        return self.scope == "manage"

    def has_expired(self, at: datetime.datetime) -> bool:
        return self.expires is not None and at >= self.expires


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    keys: tuple[AccessKey, ...]


def keys_path(home: pathlib.Path) -> pathlib.Path:
    return home / "keys.json"


def has_key_form(text: str) -> bool:
    """Whether this can be a key of ours at all; nothing else is worth a digest."""
    return _FORM.fullmatch(text) is not None


def is_key_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def read_keys(home: pathlib.Path) -> tuple[AccessKey, ...]:
    """In the order of their making; none where there is no file. Raises KeysDamaged."""
    try:
        data = _read_file(keys_path(home))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise KeysDamaged(f"it cannot be read ({error.strerror})") from error
    try:
        file = msgspec.json.decode(data, type=_File)
    except msgspec.MsgspecError as error:
        raise KeysDamaged(f"it is damaged ({error})") from error
    _check(file)
    return file.keys


def _read_file(path: pathlib.Path) -> bytes:
    # Not blocking: a pipe of this name would stop the event loop.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise KeysDamaged("it is not a file")
        if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise KeysDamaged("others than its owner may write it")
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise KeysDamaged(f"it has more than {MAX_FILE_BYTES} bytes")
    return data


def _check(file: _File) -> None:
    if file.version != _VERSION:
        raise KeysDamaged(f"it has version {file.version}, and this build reads {_VERSION}")
    if len(file.keys) > MAX_KEYS:
        raise KeysDamaged(f"it has more than {MAX_KEYS} keys")
    for key in file.keys:
        if not (_NAME.fullmatch(key.name) and _DIGEST.fullmatch(key.digest)):
            raise KeysDamaged("it is damaged (a name or a digest is not one)")
    for field in ("name", "digest"):
        if len({getattr(key, field) for key in file.keys}) < len(file.keys):
            raise KeysDamaged(f"it is damaged (a {field} is there twice)")


def add_key(
    home: pathlib.Path, name: str, scope: KeyScope, lifetime_seconds: float | None = None
) -> str:
    """The new key, which exists nowhere else. Raises Invalid, KeysDamaged, NoSpace.

    `lifetime_seconds`: after which it is refused, at least one; None: never.
    """
    expires = None if lifetime_seconds is None else _in(lifetime_seconds)
    if not is_key_name(name):
        raise Invalid(
            "a key's name has 1 to 64 letters, digits, '.', '_', '@' and '-', and begins with "
            "a letter or digit"
        )
    key = _PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    with _changing(home) as keys:
        if any(known.name == name for known in keys):
            raise Invalid(f"there is a key named '{name}' already")
        if len(keys) >= MAX_KEYS:
            raise Invalid(f"there are {MAX_KEYS} keys already; remove one first")
        keys.append(
            AccessKey(name=name, digest=digest_of(key), scope=scope, created=now(), expires=expires)
        )
    return key


def _in(seconds: float) -> datetime.datetime:
    if not 1 <= seconds <= _MOST_LIFETIME_SECONDS:
        raise Invalid("a key lives at least a second and at most a hundred years")
    return now() + datetime.timedelta(seconds=int(seconds))


def remove_key(home: pathlib.Path, name: str) -> int:
    """How many keys are left. Raises NotFound, KeysDamaged."""
    with _changing(home) as keys:
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            raise NotFound(f"no key is named '{name}'")
        keys[:] = left
    return len(left)


def record_uses(home: pathlib.Path, uses: Mapping[str, datetime.datetime]) -> None:
    """Sets `last_used` by digest; keys that were removed meanwhile stay removed."""
    with _changing(home) as keys:
        keys[:] = [with_use(key, uses) for key in keys]


def with_use(key: AccessKey, uses: Mapping[str, datetime.datetime]) -> AccessKey:
    """`key` with the later of the two times."""
    used = uses.get(key.digest)
    if used is None or (key.last_used is not None and used <= key.last_used):
        return key
    return msgspec.structs.replace(key, last_used=used)


@contextlib.contextmanager
def _changing(home: pathlib.Path) -> Generator[list[AccessKey]]:
    """The keys to change in place; written when the block ends well and something changed."""
    make_folder(home)
    with locked(home / "keys.lock"):
        before = read_keys(home)
        keys = list(before)
        yield keys
        if tuple(keys) != before:
            data = msgspec.json.format(
                msgspec.json.encode(_File(version=_VERSION, keys=tuple(keys))), indent=1
            )
            write_durably(keys_path(home), data, temporary_folder=home, mode=0o600)
    _give_to_owner(home)


def _give_to_owner(home: pathlib.Path) -> None:
    """What root writes in the home of the daemon's user must stay readable to that user."""
    if os.geteuid() == 0:
        owner = home.stat()
        for name in ("keys.json", "keys.lock"):
            with contextlib.suppress(FileNotFoundError):
                os.chown(home / name, owner.st_uid, owner.st_gid, follow_symlinks=False)
