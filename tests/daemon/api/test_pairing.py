"""Pairing over HTTP and by `hearth pair`: what a stranger may do, and what only the owner may."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import AsyncIterator

import pytest

from daemon.lan.access import add_key, read_keys
from tests.daemon.api.rig import Rig, api_rig, until
from tests.daemon.api.test_access import ELSEWHERE
from tests.daemon.cli.test_keys import KEY, hearth, host_of


@pytest.fixture
async def rig(tmp_path: pathlib.Path) -> AsyncIterator[Rig]:
    async with api_rig(tmp_path) as rig:
        yield rig


async def test_a_stranger_asks_and_the_owner_says_yes(rig: Rig) -> None:
    asked = (await rig.client.post("/api/pair", json={"name": "tv"}, headers=ELSEWHERE)).json()
    claim = {"ticket": asked["ticket"]}
    answer = await rig.client.post("/api/pair/claim", json=claim, headers=ELSEWHERE)
    assert answer.json() == {"status": "waiting"}
    (device,) = (await rig.client.get("/api/hearth/pairs")).json()["devices"]
    assert (device["code"], device["name"]) == (asked["code"], "tv")
    assert "ticket" not in device
    approve = {"code": asked["code"]}
    assert (await rig.client.post("/api/hearth/pairs/approve", json=approve)).json() == {
        "name": "tv"
    }
    answer = await rig.client.post("/api/pair/claim", json=claim, headers=ELSEWHERE)
    key = answer.json()["key"]
    headers = ELSEWHERE | {"Authorization": f"Bearer {key}"}
    assert (await rig.client.get("/api/tags", headers=headers)).status_code == 200
    again = await rig.client.post("/api/pair/claim", json=claim, headers=ELSEWHERE)
    assert again.status_code == 404 and "key" not in again.json()


async def test_strangers_and_plain_keys_do_not_approve(rig: Rig, tmp_path: pathlib.Path) -> None:
    asked = (await rig.client.post("/api/pair", json={"name": "tv"}, headers=ELSEWHERE)).json()
    key = add_key(tmp_path, "reader", "use")
    reader = ELSEWHERE | {"Authorization": f"Bearer {key}"}
    for headers, status in ((ELSEWHERE, 401), (reader, 403)):
        asking = [
            rig.client.get("/api/hearth/pairs", headers=headers),
            rig.client.post(
                "/api/hearth/pairs/approve", json={"code": asked["code"]}, headers=headers
            ),
            rig.client.delete(f"/api/hearth/pairs/{asked['code']}", headers=headers),
        ]
        assert [answer.status_code for answer in await asyncio.gather(*asking)] == [status] * 3
    assert len(read_keys(tmp_path)) == 1


async def test_what_strangers_send_is_small(rig: Rig) -> None:
    answer = await rig.client.post("/api/pair", json={"name": "x" * 5000}, headers=ELSEWHERE)
    assert answer.status_code == 413
    answer = await rig.client.post("/api/pair", json={"name": "a b"}, headers=ELSEWHERE)
    assert answer.status_code == 400
    assert (await rig.client.get("/api/hearth/pairs")).json() == {"devices": []}


async def test_pages_of_strangers_do_not_ask(rig: Rig) -> None:
    headers = {"Origin": "http://evil.example"}
    answer = await rig.client.post("/api/pair", json={"name": "tv"}, headers=headers)
    assert answer.status_code == 403


async def test_the_command_waits_for_its_key(rig: Rig, tmp_path: pathlib.Path) -> None:
    asking = asyncio.create_task(hearth(host_of(rig), tmp_path / "other", "pair", "laptop"))
    await until(lambda: bool(rig.services.pairing.waiting()))
    code, output, _ = await hearth(host_of(rig), tmp_path / "other", "key", "pending")
    digits = rig.services.pairing.waiting()[0].code
    assert (code, output.splitlines()[1].split()[:3]) == (0, [digits[:3], digits[3:], "laptop"])
    code, _, errors = await hearth(host_of(rig), tmp_path / "other", "key", "approve", "12")
    assert code == 1 and "code" in errors
    code, output, _ = await hearth(host_of(rig), tmp_path / "other", "key", "approve", digits)
    assert (code, output) == (0, "the device gets the key 'laptop'\n")
    code, output, errors = await asking
    assert code == 0 and KEY.fullmatch(output)
    assert digits in errors and output.strip() not in errors


async def test_a_refused_command_ends_with_a_sentence(rig: Rig, tmp_path: pathlib.Path) -> None:
    asking = asyncio.create_task(hearth(host_of(rig), tmp_path / "other", "pair"))
    await until(lambda: bool(rig.services.pairing.waiting()))
    digits = rig.services.pairing.waiting()[0].code
    code, _, _ = await hearth(host_of(rig), tmp_path / "other", "key", "refuse", digits)
    assert code == 0
    code, output, errors = await asking
    assert (code, output) == (1, "")
    assert "refused" in errors.splitlines()[-1]
