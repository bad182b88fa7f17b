"""Blobs from a real registry over loopback, with each fault it can show."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from daemon.errors import DaemonError, Forbidden, Internal, NotFound
from daemon.models.name import parse_name
from daemon.models.registry import parts as parts_module
from daemon.models.registry.client import RegistryClient, RegistryRefused
from daemon.models.registry.download import BlobDownload, DownloadSettings
from daemon.models.registry.keys import load_or_create_key
from daemon.models.registry.mirrors import Mirrors
from daemon.models.registry.reach import Reach
from daemon.models.registry.throttle import Throttle
from tests.daemon.models.shelf import until
from tests.registry.server import Registry

SIZE = 3_000_000
DATA = os.urandom(SIZE)
SETTINGS = DownloadSettings(
    stall_seconds=0.3, first_pause_seconds=0.01, longest_pause_seconds=0.05, tries=4
)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 400 kB, so that a small blob has several."""
    monkeypatch.setattr(parts_module, "MIN_PART_BYTES", 400_000)


@contextlib.asynccontextmanager
async def client_of(
    registry: Registry, home: pathlib.Path, *, reach: Reach = Reach()
) -> AsyncIterator[RegistryClient]:
    name = parse_name(f"{registry.host}/library/model:latest")
    key = load_or_create_key(home)
    async with RegistryClient(
        name, key=key, reach=reach, insecure=True, user_agent="test/1"
    ) as client:
        yield client


class Fetch:
    """One download with its progress on record."""

    def __init__(
        self,
        client: RegistryClient,
        digest: str,
        folder: pathlib.Path,
        size: int,
        save_seconds: float = 0.5,
    ) -> None:
        self.shown: list[int] = []
        self.blob = folder / digest.replace(":", "-")
        self.download = BlobDownload(
            client,
            digest,
            self.blob,
            size,
            throttle=Throttle(),
            settings=msgspec.structs.replace(SETTINGS, save_seconds=save_seconds),
            progress=self.shown.append,
            mirrors=Mirrors().search(digest, size, "test/1"),
        )

    async def run(self) -> None:
        async with self.download:
            await self.download.fetch_rest()
            await self.download.verify_and_finish()


async def fetched(
    registry: Registry, folder: pathlib.Path, *, size: int = SIZE, data: bytes = DATA
) -> Fetch:
    digest = registry.add_blob(data)
    async with client_of(registry, folder / "home") as client:
        fetch = Fetch(client, digest, folder, size)
        await fetch.run()
        assert fetch.blob.read_bytes() == data
        assert [p.name for p in folder.iterdir() if "partial" in p.name] == []
        assert fetch.shown == sorted(fetch.shown)
        assert fetch.shown[-1] == size
        return fetch


async def test_a_clean_download(tmp_path: pathlib.Path) -> None:
    async with Registry() as registry:
        fetch = await fetched(registry, tmp_path)
        assert fetch.download.fetched_bytes == SIZE


async def test_with_a_token(tmp_path: pathlib.Path) -> None:
    async with Registry(needs_token=True) as registry:
        await fetched(registry, tmp_path)
        assert ("GET", "/token") in registry.requests


async def test_a_token_that_is_never_enough(tmp_path: pathlib.Path) -> None:
    async with Registry(needs_token=True) as registry:
        registry.faults.token_cycles = 1000
        with pytest.raises(DaemonError, match="unauthorized: access denied"):
            await fetched(registry, tmp_path)


async def test_dropped_connections_cost_no_synced_byte(tmp_path: pathlib.Path) -> None:
    async with Registry() as registry:
        registry.faults.drops, registry.faults.drop_after_bytes = 5, 200_000
        fetch = await fetched(registry, tmp_path)
        assert fetch.download.fetched_bytes == SIZE


async def test_a_stall_is_taken_up_again(tmp_path: pathlib.Path) -> None:
    async with Registry() as registry:
        registry.faults.stalls, registry.faults.stall_after_bytes = 3, 100_000
        await fetched(registry, tmp_path)


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_passing_errors_are_waited_out(tmp_path: pathlib.Path, status: int) -> None:
    async with Registry() as registry:
        registry.faults.statuses = [status] * 3
        await fetched(registry, tmp_path)


async def test_errors_that_do_not_pass(tmp_path: pathlib.Path) -> None:
    async with Registry() as registry:
        registry.faults.statuses = [500] * 1000
        with pytest.raises(Internal, match="max retries exceeded: 500: not now"):
            await fetched(registry, tmp_path)
        registry.faults.statuses = [418]
        with pytest.raises(RegistryRefused, match="418: not now"):
            await fetched(registry, tmp_path)


async def test_a_missing_blob(tmp_path: pathlib.Path) -> None:
    async with Registry() as registry, client_of(registry, tmp_path) as client:
        with pytest.raises(NotFound, match="file does not exist"):
            await client.locate(f"sha256:{'0' * 64}")


async def test_another_range_than_asked_is_refused(tmp_path: pathlib.Path) -> None:
    async with Registry() as registry:
        registry.faults.shifts_range = 7
        with pytest.raises(RegistryRefused, match="another range"):
            await fetched(registry, tmp_path)


async def test_a_lie_about_an_answers_length_is_survived(tmp_path: pathlib.Path) -> None:
    async with Registry() as registry:
        registry.faults.lies_about_length = 100
        fetch = await fetched(registry, tmp_path)
        assert fetch.download.fetched_bytes == SIZE


async def test_a_blob_that_is_shorter_than_its_manifest_says(tmp_path: pathlib.Path) -> None:
    async with Registry() as registry:
        with pytest.raises(RegistryRefused, match=r"another range|416"):
            await fetched(registry, tmp_path, size=SIZE + 1_000_000)
        with pytest.raises(RegistryRefused, match="another range"):
            await fetched(registry, tmp_path, size=SIZE - 1000)


async def test_a_small_blob_needs_no_ranges(tmp_path: pathlib.Path) -> None:
    async with Registry() as registry:
        registry.faults.ignores_ranges = True
        await fetched(registry, tmp_path, size=1000, data=DATA[:1000])


async def test_a_large_blob_without_ranges_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    async with Registry() as registry:
        registry.faults.ignores_ranges = True
        with pytest.raises(Internal, match="ignores byte ranges"):
            await fetched(registry, tmp_path)


async def test_a_wrong_digest_leaves_nothing(tmp_path: pathlib.Path) -> None:
    async with Registry() as registry:
        registry.faults.flips_byte_at = 1_234_567
        with pytest.raises(Internal, match="digest mismatch, file must be downloaded again"):
            await fetched(registry, tmp_path)
        assert [p for p in tmp_path.iterdir() if p.name != "home"] == []
        registry.faults.flips_byte_at = -1
        await fetched(registry, tmp_path)


async def test_cancelled_and_taken_up_many_times(tmp_path: pathlib.Path) -> None:
    async with Registry() as registry:
        registry.faults.bytes_per_second = 4_000_000
        digest = registry.add_blob(DATA)
        total, blob = 0, tmp_path / digest.replace(":", "-")
        for _ in range(60):
            async with client_of(registry, tmp_path / "home") as client:
                fetch = Fetch(client, digest, tmp_path, SIZE)
                task = asyncio.create_task(fetch.run())
                await asyncio.sleep(0.12)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                total += fetch.download.fetched_bytes
                assert fetch.shown == sorted(fetch.shown)
            if blob.exists():
                break
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == digest[7:]
        assert total == SIZE


async def test_a_part_file_that_lies_is_not_believed(tmp_path: pathlib.Path) -> None:
    async with Registry() as registry:
        digest = registry.add_blob(DATA)
        partial = tmp_path / f"{digest.replace(':', '-')}-partial"
        partial.write_bytes(b"x" * 100)
        partial.with_name(partial.name + "-0").write_text(
            '{"N":0,"Offset":0,"Size":9,"Completed":9}'
        )
        await fetched(registry, tmp_path)


async def test_redirects_to_private_addresses_are_refused(tmp_path: pathlib.Path) -> None:
    async with Registry() as registry:
        digest = registry.add_blob(DATA)
        registry.faults.redirect = "http://127.0.0.1:9/x"
        name = parse_name(f"{registry.host}/library/model:latest")
        client = RegistryClient(
            name,
            key=load_or_create_key(tmp_path),
            reach=Reach(),
            insecure=False,
            user_agent="test/1",
        )
        async with client:
            client._scheme = "http"  # pyright: ignore[reportPrivateUsage]
            client._is_private = lambda: False  # type: ignore[method-assign]  # a public registry's view
            with pytest.raises(Forbidden, match="redirects to the private address"):
                await client.locate(digest)


async def test_a_redirect_to_another_host_goes_without_the_token(tmp_path: pathlib.Path) -> None:
    async with Registry(needs_token=True) as registry, Registry() as store:
        store.add_blob(DATA)
        registry.faults.redirect = f"http://{store.host}{{path}}"
        await fetched(registry, tmp_path)
        assert store.authorizations == {""}
        assert store.sent_bytes.total() == SIZE
        assert registry.sent_bytes.total() == 0


async def test_a_killed_daemon_loses_little(tmp_path: pathlib.Path) -> None:
    """Nothing is closed or saved at the end: only what was on record counts."""
    async with Registry() as registry:
        registry.faults.bytes_per_second = 1_000_000
        registry.chunk_bytes = 16 << 10
        digest = registry.add_blob(DATA)
        async with client_of(registry, tmp_path / "home") as client:
            fetch = Fetch(client, digest, tmp_path, SIZE, save_seconds=0.05)
            task = asyncio.create_task(fetch.run())

            def on_record() -> int:
                texts: list[str] = []
                for path in tmp_path.glob("*-partial-*"):
                    with contextlib.suppress(FileNotFoundError):
                        texts.append(path.read_text())
                # One that is being written just now is empty.
                return sum(json.loads(text)["Completed"] for text in texts if text)

            await until(lambda: on_record() > 0 or task.done())
            assert not task.done(), "too fast to be interrupted"
            assert fetch.download.fetched_bytes - on_record() < SIZE * 0.8
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_an_allow_list_is_kept(tmp_path: pathlib.Path) -> None:
    async with Registry() as registry:
        with pytest.raises(Forbidden, match="not in the list of allowed registries"):
            async with client_of(registry, tmp_path, reach=Reach(allowed_hosts=("example.org",))):
                pass
        async with client_of(registry, tmp_path, reach=Reach(allowed_hosts=("127.0.0.1",))):
            pass
