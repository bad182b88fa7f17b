"""The dashboard's files and what they ask, on a real socket; the guard's part with a stranger's eyes."""

from __future__ import annotations

import pathlib
import re
from collections.abc import AsyncIterator

import msgspec
import pytest

from daemon.models.jobs import ConversionProgress, JobView
from tests.daemon.api.rig import Rig, api_rig

WEB = pathlib.Path(__file__).parents[3] / "daemon" / "web"
CHAT = {"model": "one", "messages": [{"role": "user", "content": "count"}], "stream": False}


@pytest.fixture
async def rig(tmp_path: pathlib.Path) -> AsyncIterator[Rig]:
    async with api_rig(tmp_path, num_parallel=2) as rig:
        await rig.add_model("one")
        yield rig


async def test_the_page_and_its_files_reach_nothing_else(rig: Rig) -> None:
    page = await rig.client.get("/dashboard")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    named = set(re.findall(r"(?:src|href)=\"(/[^\"]+)\"", page.text))
    imported = {
        f"/dashboard/{name}"
        for path in WEB.glob("*.js")
        for name in re.findall(r'from "\./([^"]+)"', path.read_text())
    }
    assert named | imported == {f"/dashboard/{path.name}" for path in WEB.glob("*.[cj]s*")}
    for path in sorted(named | imported):
        answer = await rig.client.get(path)
        assert answer.status_code == 200
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"https?://", answer.text)


async def test_a_file_that_is_known_is_not_sent_again(rig: Rig) -> None:
    first = await rig.client.get("/dashboard/dashboard.css")
    again = await rig.client.get(
        "/dashboard/dashboard.css", headers={"If-None-Match": first.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "..%2f__main__.py", "%2e%2e%2fapp.py", "a/b.js"])
async def test_nothing_but_its_files_can_be_asked_for(rig: Rig, name: str) -> None:
    answer = await rig.client.get(f"/dashboard/{name}", follow_redirects=True)
    assert answer.status_code == 404
    assert "import" not in answer.text


async def test_the_page_finds_every_element_that_it_names() -> None:
    page = (WEB / "dashboard.html").read_text()
    ids = set(re.findall(r'id="([^"]+)"', page))
    asked = {
        found
        for path in WEB.glob("*.js")
        for found in re.findall(r'byId\("([^"]+)"\)', path.read_text())
    }
    assert asked <= ids


async def test_activity_tells_what_was_done(rig: Rig) -> None:
    rig.services.readiness.is_ready = True
    before = (await rig.client.get("/api/activity")).json()
    await rig.client.post("/api/chat", json=CHAT)
    after = (await rig.client.get("/api/activity")).json()
    assert after["completion_ids"] > before["completion_ids"]
    assert after["prompt_ids"] > before["prompt_ids"]
    assert after["can_manage"] is True
    assert 0 < after["free_bytes"] <= after["memory_bytes"]
    assert after["uptime_seconds"] >= before["uptime_seconds"]
    assert after["problem"] == ""


async def test_conversions_have_their_models_names(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stored,) = rig.services.store.manifests()
    source = stored.manifest.layers[0].digest.removeprefix("sha256:")
    progress = ConversionProgress(phase="write", done=3, total=10)
    job = JobView(source=source, variant="onnx-cpu-f1", waiters=1, progress=progress)
    monkeypatch.setattr(rig.services.conversions, "jobs", lambda: [job])
    answer = (await rig.client.get("/api/activity")).json()
    assert answer["conversions"] == [
        {
            "source": source,
            "names": ["one:latest"],
            "variant": "onnx-cpu-f1",
            "phase": "write",
            "done": 3,
            "total": 10,
        }
    ]


async def test_strangers_see_the_page_and_nothing_behind_it(tmp_path: pathlib.Path) -> None:
    async with api_rig(tmp_path) as rig:
        headers = {"X-Forwarded-For": "192.0.2.7"}
        page = await rig.client.get("/dashboard", headers=headers)
        script = await rig.client.get("/dashboard/dashboard.js", headers=headers)
        activity = await rig.client.get("/api/activity", headers=headers)
    assert (page.status_code, script.status_code, activity.status_code) == (200, 200, 401)
    assert msgspec.json.decode(activity.content)["error"]
