"""The certificate that this daemon shows, where its owner has one: read at the start and when renewed."""

from __future__ import annotations

import asyncio
import logging
import pathlib
import ssl
import stat

from daemon.config import Config, ConfigError

RENEWAL_SECONDS = 60.0
log = logging.getLogger(__name__)
_Stamp = tuple[tuple[int, int], ...]


class Certificate:
    """`context` is for the server. A renewed file counts for connections from then on."""

    def __init__(self, certificate: pathlib.Path, key: pathlib.Path | None) -> None:
        """`key` None: it lies in the same file. Raises ConfigError naming the file."""
        self._files = (certificate, *([key] if key else []))
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._seen = self._stamp()
        self._load()
        _warn_of_readers(self._files[-1])

    def _load(self) -> None:
        certificate, *key = self._files
        try:
            self.context.load_cert_chain(certificate, key[0] if key else None, _no_password)
        except (OSError, ssl.SSLError, ValueError) as error:
            names = " and ".join(str(file) for file in self._files)
            raise ConfigError(
                f"no certificate with its key in {names}: {_reason(error)}"
            ) from error

    def _stamp(self) -> _Stamp:
        try:
            return tuple((f.st_mtime_ns, f.st_ino) for f in (path.stat() for path in self._files))
        except OSError as error:
            raise ConfigError(f"{error.filename}: {error.strerror}") from error

    def refresh(self) -> None:
        """Blocking. What cannot be used is said, and the old certificate stays."""
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                return
            self._seen = stamp
            # A half-written pair must not touch the one in use.
            Certificate(self._files[0], self._files[1] if len(self._files) > 1 else None)
            self._load()
            log.info("the renewed certificate is in use")
        except ConfigError as error:
            log.error("the old certificate stays in use: %s", error)

    async def follow(self) -> None:
        while True:
            await asyncio.sleep(RENEWAL_SECONDS)
            await asyncio.to_thread(self.refresh)


def certificate_of(config: Config) -> Certificate | None:
    """None where the owner has none. Raises ConfigError."""
    if config.tls_certificate is None:
        if config.tls_key is not None:
            raise ConfigError("HEARTH_TLS_KEY is given without HEARTH_TLS_CERT")
        return None
    return Certificate(config.tls_certificate, config.tls_key)


def _no_password() -> str:
    """Nobody sits at a daemon's terminal."""
    raise ValueError("the key is encrypted, and there is nobody to ask for its password")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "it cannot be read").lower().replace("_", " ")
    return getattr(error, "strerror", None) or str(error)


def _warn_of_readers(path: pathlib.Path) -> None:
    if path.stat().st_mode & stat.S_IROTH:
        log.warning("%s holds a private key and every user of this machine may read it", path)
