"""Who gets in, with what, and how far: every header, every kind of peer, every route."""

from __future__ import annotations

import asyncio
import base64
import logging
import pathlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from litestar import Request

from daemon.api.application import create_routes
from daemon.api.callers import GUEST, LOCAL, STRANGER, caller_of, judge, presented_key
from daemon.api.request import client_of
from daemon.lan.access import add_key, has_key_form, read_keys
from daemon.lan.addresses import local_addresses
from daemon.lan.key_ring import KeyRing
from tests.daemon.api.rig import Rig, api_rig
from tests.daemon.api.route_table import DIGEST, FREE, MANAGE, ROUTES

# What makes a request over loopback another machine's.
ELSEWHERE = {"X-Forwarded-For": "192.168.1.9"}
NO_KEY = "hk_" + "x" * 43


def basic(key: str, user: str = "me") -> str:
    return "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()


class Keyed:
    """A rig with a key of each scope."""

    def __init__(self, rig: Rig, home: pathlib.Path) -> None:
        self.rig = rig
        self.home = home
        self.use = add_key(home, "reader", "use")
        self.manage = add_key(home, "owner", "manage")

    async def ask(
        self, method: str, path: str, key: str = "", body: object = None, **headers: str
    ) -> httpx.Response:
        """As another machine."""
        given = {"Authorization": f"Bearer {key}"} if key else {}
        return await self.rig.client.request(
            method, path, json=body, headers=ELSEWHERE | given | headers
        )


@pytest.fixture
async def keyed(tmp_path: pathlib.Path) -> AsyncIterator[Keyed]:
    async with api_rig(tmp_path) as rig:
        yield Keyed(rig, tmp_path)


def scope_of(peer: str | None, *headers: tuple[bytes, bytes]) -> Any:
    client = None if peer is None else (peer, 5)
    return {"type": "http", "client": client, "headers": list(headers)}


@pytest.mark.parametrize(
    ("peer", "is_local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("192.168.1.9", False),
        ("::ffff:192.168.1.9", False),
        ("fe80::1%eth0", False),
        ("0.0.0.0", False),
        ("128.0.0.1", False),
        ("127.0.0.1.evil.example", False),
        ("localhost", False),
        ("", False),
        (None, False),
    ],
)
def test_only_the_connection_says_what_is_this_machine(
    tmp_path: pathlib.Path, peer: str | None, is_local: bool
) -> None:
    ring = KeyRing(tmp_path)
    scope = scope_of(peer, (b"host", b"127.0.0.1"))
    assert judge(scope, ring, is_open=False) == (LOCAL if is_local else STRANGER)
    assert caller_of(scope) == (LOCAL if is_local else STRANGER)
    assert judge(scope, ring, is_open=True) == (LOCAL if is_local else GUEST)


def test_who_was_never_judged_is_a_stranger() -> None:
    assert caller_of(scope_of("127.0.0.1")) == STRANGER


@pytest.mark.parametrize("name", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "x-real-ip"])
@pytest.mark.parametrize("value", ["127.0.0.1", "for=127.0.0.1", ""])
async def test_behind_a_proxy_nobody_is_this_machine(keyed: Keyed, name: str, value: str) -> None:
    client = keyed.rig.client
    assert (await client.get("/api/tags")).status_code == 200
    refused = await client.get("/api/tags", headers={name: value})
    assert refused.status_code == 401
    allowed = await client.get("/api/tags", headers={name: value, "X-Api-Key": keyed.use})
    assert allowed.status_code == 200


FORMS: dict[str, Callable[[str], dict[str, str]]] = {
    "bearer": lambda key: {"Authorization": f"Bearer {key}"},
    "bearer in another case": lambda key: {"authorization": f"bearer  {key}"},
    "x-api-key": lambda key: {"x-api-key": key},
    "basic": lambda key: {"Authorization": basic(key)},
    "basic without a user": lambda key: {"Authorization": basic(key, "")},
    "both, and one is another's": lambda key: {"Authorization": "Bearer ollama", "x-api-key": key},
    "both, the other way": lambda key: {"Authorization": f"Bearer {key}", "x-api-key": "sk-1"},
}


@pytest.mark.parametrize("form", FORMS)
async def test_every_form_of_showing_a_key(keyed: Keyed, form: str) -> None:
    for key, status in ((keyed.use, 200), (keyed.manage, 200), (NO_KEY, 401)):
        headers = ELSEWHERE | FORMS[form](key)
        assert (await keyed.rig.client.get("/api/tags", headers=headers)).status_code == status


@pytest.mark.parametrize(
    "form",
    [
        lambda key: {"Authorization": key},
        lambda key: {"Authorization": f"Token {key}"},
        lambda key: {"Authorization": f"Bearer {key}x"},
        lambda key: {"Authorization": f"Bearer {key[:-1]}"},
        lambda key: {"Authorization": f"Bearer {key}, Bearer {key}"},
        lambda key: {"Authorization": f"Bearer{key}"},
        lambda key: {"Authorization": basic(NO_KEY, key)},
        lambda key: {"Authorization": f"Basic {key}"},
        lambda key: {"Authorization": "Basic !!!"},
        lambda key: {"Authorization": "Basic " + "QUFB" * 1000},
        lambda key: {"Authorization": "Basic"},
        lambda key: {"x-api-key": f"Bearer {key}"},
        lambda key: {"x-api-key": key.upper()},
        lambda key: {"x-api-key": ""},
        lambda key: {"Cookie": f"key={key}"},
        lambda key: {},
    ],
)
async def test_whatever_is_no_key_is_refused(
    keyed: Keyed, form: Callable[[str], dict[str, str]]
) -> None:
    headers = ELSEWHERE | form(keyed.use)
    refused = await keyed.rig.client.get("/api/tags", headers=headers)
    assert refused.status_code == 401
    assert refused.json() == {"error": "unauthorized"}
    in_query = await keyed.ask("GET", f"/api/tags?key={keyed.use}&api_key={keyed.use}")
    assert in_query.status_code == 401


@given(
    st.sampled_from([b"Bearer ", b"Basic ", b"basic", b""]),
    st.binary(max_size=700) | st.binary(max_size=80).map(base64.b64encode),
)
def test_no_header_breaks_anything(scheme: bytes, rest: bytes) -> None:
    for name in (b"authorization", b"x-api-key"):
        found = presented_key([(name, scheme + rest)])
        assert found == "" or has_key_form(found)


async def test_the_refusal_in_each_dialect(keyed: Keyed) -> None:
    for path in ("/api/chat", "/none", "/v1", "/api/v1/messages"):
        refused = await keyed.ask("POST", path)
        assert refused.json() == {"error": "unauthorized"}
    for path in ("/v1/chat/completions", "/v1/models", "/v1/messages-of-others", "/rerank"):
        error = (await keyed.ask("POST", path)).json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
        assert "key" in error["message"]
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        refused = await keyed.ask("POST", path)
        assert refused.json()["type"] == "error"
        assert refused.json()["error"]["type"] == "authentication_error"
        assert refused.json()["request_id"] == refused.headers["request-id"]
    for path in ("/api/chat", "/v1/models", "/v1/messages"):
        refused = await keyed.ask("POST", path)
        assert refused.status_code == 401
        assert refused.headers.get_list("www-authenticate") == ["Bearer"]
        assert refused.headers["content-type"].startswith("application/json")


async def test_a_browser_that_opens_a_page_may_ask_its_user(keyed: Keyed) -> None:
    path = "/openapi/openapi.json"
    refused = await keyed.ask("GET", path, Accept="text/html,*/*;q=0.8")
    challenges = refused.headers.get_list("www-authenticate")
    assert challenges == ["Bearer", 'Basic realm="Hearth"']
    allowed = await keyed.ask("GET", path, Authorization=basic(keyed.use))
    assert allowed.status_code == 200


async def test_pages_of_known_origins_can_read_the_refusal(keyed: Keyed) -> None:
    origin = "http://localhost:3000"
    refused = await keyed.ask("GET", "/api/tags", Origin=origin)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == origin
    foreign = await keyed.ask("GET", "/api/tags", keyed.manage, Origin="https://evil.example")
    assert foreign.status_code == 403
    preflight = await keyed.ask("OPTIONS", "/api/tags", Origin=origin)
    assert preflight.status_code == 204


def registered(rig: Rig) -> set[tuple[str, str]]:
    return {
        (method, route.path)
        for route in create_routes(rig.services).routes
        for method in getattr(route, "methods", ["?"])
        if method != "OPTIONS"
    }


async def test_the_table_has_every_route_there_is(keyed: Keyed) -> None:
    assert registered(keyed.rig) == ROUTES.keys()


@pytest.mark.parametrize(("method", "route"), ROUTES)
async def test_what_each_route_takes(keyed: Keyed, method: str, route: str) -> None:
    path = route.replace("{digest:str}", DIGEST)
    for part in (
        "{asked:path}",
        "{name:str}",
        "{path:str}",
        "{code:str}",
        "{namespace:str}",
        "{model:str}",
        "{tag:str}",
    ):
        path = path.replace(part, "nobody")
    needs = ROUTES[method, route]
    expected = {
        "": 0 if needs == FREE else 401,
        NO_KEY: 0 if needs == FREE else 401,
        keyed.use: 403 if needs == MANAGE else 0,
        keyed.manage: 0,
    }
    for key, status in expected.items():
        answer = await keyed.ask(method, path, key, {} if method == "POST" else None)
        is_refused = answer.status_code == 403 or "www-authenticate" in answer.headers
        assert (answer.status_code if is_refused else 0) == status, (key, answer.text)
        if status == 403 and method != "HEAD":
            assert "'reader'" in answer.json()["error"]
            assert "'manage'" in answer.json()["error"]
    local = await keyed.rig.client.request(method, path, json={} if method == "POST" else None)
    assert local.status_code != 403 and "www-authenticate" not in local.headers


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
async def test_unloading_a_model_takes_the_key_to_manage(keyed: Keyed, path: str) -> None:
    await keyed.rig.add_model("one")
    body = {"model": "one", "keep_alive": 0}
    assert (await keyed.ask("POST", path, keyed.use, body)).status_code == 403
    assert (await keyed.ask("POST", path, keyed.manage, body)).status_code == 200


async def test_other_spellings_of_a_path_open_nothing(keyed: Keyed) -> None:
    spellings = ("/api/tags/", "//api/tags", "/api/%74ags", "/API/tags", "/healthz/../api/tags")
    for path in (*spellings, "/healthz/x", "/api/version/../tags", "/%2e/api/tags"):
        url = f"{keyed.rig.base}{path}"
        request = httpx.Request("GET", url, headers=ELSEWHERE)
        request.url = httpx.URL(url, raw_path=path.encode())
        answer = await keyed.rig.client.send(request, follow_redirects=True)
        assert answer.status_code == 401, path
    assert (await keyed.ask("POST", "/api/version")).status_code == 401
    assert (await keyed.ask("DELETE", "/")).status_code == 401


async def test_an_open_daemon_needs_a_key_only_to_be_changed(tmp_path: pathlib.Path) -> None:
    async with api_rig(tmp_path, open_lan=True) as rig:
        keyed = Keyed(rig, tmp_path)
        for key in ("", NO_KEY, keyed.use, keyed.manage, "ollama"):
            assert (await keyed.ask("GET", "/api/tags", key)).status_code == 200
        body = {"model": "none"}
        for key, status in (("", 403), (NO_KEY, 403), (keyed.use, 403), (keyed.manage, 404)):
            assert (await keyed.ask("DELETE", "/api/delete", key, body)).status_code == status


async def test_a_life_of_a_key_over_http(keyed: Keyed, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = await keyed.ask("POST", "/api/hearth/keys", keyed.manage, {"name": "tv"})
    assert made.status_code == 200
    key = made.json()["key"]
    assert made.json() == {"name": "tv", "scope": "use", "key": key}
    assert (await keyed.ask("GET", "/api/tags", key)).status_code == 200
    listed = (await keyed.ask("GET", "/api/hearth/keys", keyed.manage)).json()["keys"]
    assert [entry["name"] for entry in listed] == ["reader", "owner", "tv"]
    assert [bool(entry["last_used"]) for entry in listed] == [False, True, True]
    assert "digest" not in str(listed) and key not in str(listed)
    again = await keyed.ask("POST", "/api/hearth/keys", keyed.manage, {"name": "tv"})
    assert (again.status_code, "already" in again.json()["error"]) == (400, True)
    unknown = await keyed.ask("POST", "/api/hearth/keys", keyed.manage, {"name": "a", "scope": "x"})
    assert unknown.status_code == 400
    removed = await keyed.ask("DELETE", "/api/hearth/keys/tv", keyed.manage)
    assert removed.json() == {"left": 2}
    assert (await keyed.ask("GET", "/api/tags", key)).status_code == 401
    gone = await keyed.ask("DELETE", "/api/hearth/keys/tv", keyed.manage)
    assert (gone.status_code, "tv" in gone.json()["error"]) == (404, True)
    mine = await keyed.ask("DELETE", "/api/hearth/keys/owner", keyed.manage)
    assert mine.json() == {"left": 1}
    assert (await keyed.ask("GET", "/api/hearth/keys", keyed.manage)).status_code == 401
    for secret in (key, keyed.use, keyed.manage, NO_KEY):
        assert secret not in caplog.text and secret[3:] not in caplog.text


async def test_a_running_answer_outlives_its_key(keyed: Keyed) -> None:
    await keyed.rig.add_model("one")
    body = {"model": "one", "prompt": "count"}
    headers = ELSEWHERE | {"Authorization": f"Bearer {keyed.use}"}
    stream = keyed.rig.client.stream("POST", "/api/generate", json=body, headers=headers)
    async with stream as answer:
        await keyed.rig.client.delete("/api/hearth/keys/reader")
        lines = [line async for line in answer.aiter_lines()]
    assert '"done":true' in lines[-1]
    assert (await keyed.ask("POST", "/api/generate", keyed.use, body)).status_code == 401


async def test_clients_behind_one_address_are_told_apart_by_their_keys(
    tmp_path: pathlib.Path,
) -> None:
    ring, key = KeyRing(tmp_path), add_key(tmp_path, "phone", "use")
    scopes = [scope_of("192.168.1.9", *sent) for sent in ([(b"x-api-key", key.encode())], [])]
    for scope in scopes:
        judge(scope, ring, is_open=True)
    names = [client_of(Request[Any, Any, Any](scope)) for scope in scopes]
    await ring.close()
    assert names == ["key:phone", "192.168.1.9"]


async def test_who_resets_the_connection_is_not_taken_for_this_machine(
    tmp_path: pathlib.Path,
) -> None:
    """Such a peer has no address any more when its request is read, and the request still counts."""
    addresses = (a for a in local_addresses() if ":" not in a and not a.startswith("127."))
    if not (own := next(addresses, "")):
        pytest.skip("this machine has no address but loopback")
    request = b"DELETE /api/hearth/keys/owner HTTP/1.1\r\nHost: localhost\r\n\r\n"
    add_key(tmp_path, "owner", "manage")
    async with api_rig(tmp_path, host="0.0.0.0", open_lan=True) as rig:
        port = int(rig.base.rsplit(":", 1)[-1])
        for _ in range(10):
            # All before the server's loop runs again.
            with socket.create_connection((own, port)) as peer:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.sendall(request)
            await asyncio.sleep(0.02)
        await rig.client.get("/api/hearth/keys")
    assert [key.name for key in read_keys(tmp_path)] == ["owner"]
