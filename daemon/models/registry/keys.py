"""The ed25519 key a registry knows this machine by. Made at first use; the private half is 0600.

Files are OpenSSH's: `id_ed25519` and `id_ed25519.pub`, as every client of this protocol keeps them.
"""

from __future__ import annotations

import base64
import hashlib
import os
import pathlib
import secrets

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from daemon.errors import Internal

_FILE = "id_ed25519"
# Base64 of the hex digest of nothing: the request that fetches a token has no body.
_EMPTY_BODY = base64.b64encode(hashlib.sha256(b"").hexdigest().encode()).decode()


class RegistryKey:
    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    @property
    def public_line(self) -> str:
        """`ssh-ed25519 <base64>`, as `authorized_keys` has it."""
        encoded = self._private.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        return encoded.decode()

    def authorization(self, url: str) -> str:
        """The header that proves who asks for the token at `url`."""
        signature = self._private.sign(f"GET,{url},{_EMPTY_BODY}".encode())
        public = self.public_line.split()[1]
        return f"{public}:{base64.b64encode(signature).decode()}"


def load_or_create_key(folder: pathlib.Path) -> RegistryKey:
    """Raises Internal when a key is there but is not one."""
    path = folder / _FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return _create(folder)
    try:
        private = serialization.load_ssh_private_key(data, password=None)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Internal(f"{path.name} is not a readable private key") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise Internal(f"{path.name} is not an ed25519 key")
    return RegistryKey(private)


def _create(folder: pathlib.Path) -> RegistryKey:
    private = Ed25519PrivateKey.generate()
    key = RegistryKey(private)
    encoded = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _write(folder / _FILE, encoded, 0o600)
    except FileExistsError:  # another daemon of this home was quicker
        return load_or_create_key(folder)
    (folder / f"{_FILE}.pub").unlink(missing_ok=True)
    _write(folder / f"{_FILE}.pub", f"{key.public_line}\n".encode(), 0o644)
    return key


def _write(path: pathlib.Path, data: bytes, mode: int) -> None:
    """Whole or not at all. Raises FileExistsError when `path` is there."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(temporary)
    finally:
        temporary.unlink()
