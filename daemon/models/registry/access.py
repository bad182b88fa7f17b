"""How this daemon goes to registries: with one key, one pace, one reach and an honest name.

User-Agent: `ollama/<version> (<arch> <os>) Hearth/<own version>`. The public registry looks at the
first word: to models that are newer than the version in it, it answers 412. So the version there is
the one whose manifests and layers this build understands; the second product is who we really are.
"""

from __future__ import annotations

import asyncio
import pathlib
import platform
import sys

import msgspec

from daemon.models.name import ModelName
from daemon.models.registry.client import RegistryClient
from daemon.models.registry.download import BlobDownload, DownloadSettings, Progress
from daemon.models.registry.keys import RegistryKey, load_or_create_key
from daemon.models.registry.mirrors import Mirrors
from daemon.models.registry.reach import Reach
from daemon.models.registry.throttle import QuietHours, Throttle

COMPATIBLE_VERSION = "0.33.0"
_GO_PROCESSORS = {"x86_64": "amd64", "aarch64": "arm64"}


def user_agent(own_version: str) -> str:
    processor = _GO_PROCESSORS.get(platform.machine(), platform.machine())
    return f"ollama/{COMPATIBLE_VERSION} ({processor} {sys.platform}) Hearth/{own_version}"


class AccessSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`bytes_per_second` 0: as fast as it goes. `allowed_hosts` empty: every registry.

    `mirrors`: addresses of neighbours, or "lan".
    """

    version: str = "0.0.0"
    allowed_hosts: tuple[str, ...] = ()
    bytes_per_second: int = 0
    quiet_hours: QuietHours | None = None
    download: DownloadSettings = DownloadSettings()
    mirrors: tuple[str, ...] = ()


class RegistryAccess:
    """Shared by every pull and push. The key is made at the first."""

    def __init__(self, home: pathlib.Path, settings: AccessSettings) -> None:
        self._home = home
        self._settings = settings
        self._key: RegistryKey | None = None
        self._key_lock = asyncio.Lock()
        self._reach = Reach(allowed_hosts=settings.allowed_hosts)
        self.download_settings = settings.download
        self.mirrors = Mirrors(settings.mirrors)
        self.throttle = Throttle(settings.bytes_per_second, settings.quiet_hours)

    async def client(self, name: ModelName, *, insecure: bool) -> RegistryClient:
        """Raises Forbidden for a registry that the owner did not allow."""
        self._reach.check_registry(name.host)
        async with self._key_lock:
            if self._key is None:
                self._key = await asyncio.to_thread(load_or_create_key, self._home)
        return RegistryClient(
            name,
            key=self._key,
            reach=self._reach,
            insecure=insecure,
            user_agent=user_agent(self._settings.version),
            token=self.mirrors.key_for(name.host),
        )

    def download(
        self,
        client: RegistryClient,
        digest: str,
        blob: pathlib.Path,
        total_bytes: int,
        progress: Progress,
    ) -> BlobDownload:
        return BlobDownload(
            client,
            digest,
            blob,
            total_bytes,
            throttle=self.throttle,
            settings=self.download_settings,
            progress=progress,
            mirrors=self.mirrors.search(digest, total_bytes, user_agent(self._settings.version)),
        )
