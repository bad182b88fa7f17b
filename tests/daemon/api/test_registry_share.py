"""A shelf as a registry: what is given, to whom, and in which pieces."""

from __future__ import annotations

import hashlib
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.api.file_answer import requested
from tests.daemon.api.rig import Rig, api_rig


def weights_of(rig: Rig) -> tuple[str, bytes]:
    (stored,) = rig.services.store.manifests()
    digest = stored.manifest.layers[0].digest
    return digest, rig.services.store.blobs.path(digest.removeprefix("sha256:")).read_bytes()


async def test_nothing_is_shared_unless_the_owner_says_so(tmp_path: pathlib.Path) -> None:
    async with api_rig(tmp_path) as rig:
        await rig.add_model("one")
        digest, _ = weights_of(rig)
        for path in ("", "/library/one/manifests/latest", f"/library/one/blobs/{digest}"):
            assert (await rig.client.get(f"/v2{path}")).status_code == 404


async def test_manifest_and_blobs(tmp_path: pathlib.Path) -> None:
    async with api_rig(tmp_path, share=True) as rig:
        await rig.add_model("one")
        digest, data = weights_of(rig)
        assert (await rig.client.get("/v2")).json() == {}
        manifest = await rig.client.get("/v2/library/ONE/manifests/latest")
        (stored,) = rig.services.store.manifests()
        assert manifest.content == rig.services.store.manifest_bytes(stored.name)
        found = f"sha256:{hashlib.sha256(manifest.content).hexdigest()}"
        assert manifest.headers["docker-content-digest"] == found
        url = f"/v2/library/blob/blobs/{digest}"
        whole = await rig.client.get(url)
        assert (whole.status_code, whole.content) == (200, data)
        head = await rig.client.head(url)
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["content-length"]) == len(data)
        part = await rig.client.get(url, headers={"Range": "bytes=1-3"})
        assert (part.status_code, part.content) == (206, data[1:4])
        assert part.headers["content-range"] == f"bytes 1-3/{len(data)}"
        beyond = await rig.client.get(url, headers={"Range": f"bytes={len(data)}-"})
        assert beyond.status_code == 416


@pytest.mark.parametrize(
    "path",
    [
        "library/two/manifests/latest",
        "library/one/manifests/..%2f..",
        f"library/one/blobs/sha256:{'0' * 64}",
        "library/one/blobs/..%2f..%2fkeys.json",
    ],
)
async def test_what_is_not_there_is_a_registrys_error(tmp_path: pathlib.Path, path: str) -> None:
    async with api_rig(tmp_path, share=True) as rig:
        await rig.add_model("one")
        answer = await rig.client.get(f"/v2/{path}", follow_redirects=True)
        assert answer.status_code == 404


async def test_blobs_that_no_model_names_are_not_given(tmp_path: pathlib.Path) -> None:
    async with api_rig(tmp_path, share=True) as rig:
        await rig.add_model("one")
        data = b"left behind"
        await rig.services.store.put_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        assert rig.services.store.blobs.has(digest)
        answer = await rig.client.get(f"/v2/library/one/blobs/sha256:{digest}")
        assert answer.status_code == 404
        assert answer.json()["errors"][0]["code"] == "BLOB_UNKNOWN"


@pytest.mark.parametrize(
    ("header", "size", "found"),
    [
        ("", 10, (0, 10)),
        ("bytes=0-0", 10, (0, 1)),
        ("bytes=3-", 10, (3, 10)),
        ("bytes=3-99", 10, (3, 10)),
        ("bytes=-4", 10, (6, 10)),
        ("bytes=-99", 10, (0, 10)),
        ("bytes=-0", 10, None),
        ("bytes=10-", 10, None),
        ("bytes=0-", 0, None),
        ("bytes=5-2", 10, (0, 10)),
        ("bytes=0-1,3-4", 10, (0, 10)),
        ("items=0-1", 10, (0, 10)),
    ],
)
def test_ranges(header: str, size: int, found: tuple[int, int] | None) -> None:
    assert requested(header, size) == found


@given(st.text(max_size=40), st.integers(0, 1 << 40))
def test_no_range_leaves_the_file(header: str, size: int) -> None:
    for text in (header, f"bytes={header}"):
        found = requested(text, size)
        assert found is None or 0 <= found[0] <= found[1] <= size
