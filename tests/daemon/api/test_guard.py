from __future__ import annotations

import pathlib
import socket
from collections.abc import AsyncIterator

import httpx
import pytest
from litestar import Litestar, get, post

from daemon.api.guard import Guard, HostCheck, clean_path, host_without_port, origin_matches
from daemon.lan.key_ring import KeyRing
from tests.daemon.api.serving import loopback_config, served

HOME = pathlib.Path("/nowhere")


@get("/a/b")
async def answer() -> str:
    return "here"


@post("/a/p", status_code=200)
async def posted() -> str:
    return "posted"


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    config = loopback_config(HOME, origins=("https://mine.example", "chrome-extension://*"))
    app = Guard(
        Litestar([answer, posted], logging_config=None, openapi_config=None), config, KeyRing(HOME)
    )
    async with served(app) as base, httpx.AsyncClient(base_url=base) as client:
        yield client


@pytest.mark.parametrize(
    ("origin", "pattern", "expected"),
    [
        ("http://localhost:3000", "http://localhost:*", True),
        ("http://localhost.evil", "http://localhost:*", False),
        ("app://x", "app://*", True),
        ("https://a.example.com", "https://*.example.com", True),
        ("https://.example.com", "https://*.example.com", True),
        ("https://example.com", "https://*.example.com", False),
        ("ab", "ab*ab", False),
        ("anything", "*", True),
    ],
)
def test_origin_patterns(origin: str, pattern: str, expected: bool) -> None:
    assert origin_matches(origin, pattern) is expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("name:1", "name"),
        ("NAME", "name"),
        ("name.:1", "name"),
        ("[::1]:1", "::1"),
        ("[::1]", "::1"),
        ("::1", "::1"),
        ("", ""),
    ],
)
def test_host_without_port(host: str, expected: str) -> None:
    assert host_without_port(host) == expected


@pytest.mark.parametrize("bind", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize(
    ("host", "accepted"),
    [
        ("", True),
        ("localhost:11434", True),
        ("127.0.0.1:11434", True),
        ("[::1]:1", True),
        ("0.0.0.0", True),
        ("printer.local", True),
        ("a.localhost", True),
        ("host.docker.internal:11434", True),
        (socket.gethostname(), True),
        ("192.168.7.7", True),
        ("8.8.4.4", True),
        ("8.8.8.8", False),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("local", False),
    ],
)
def test_hosts_are_checked_at_every_bind(bind: str, host: str, accepted: bool) -> None:
    check = HostCheck(loopback_config(HOME, host=bind), lambda: frozenset({"8.8.4.4"}))
    assert check.accepts(host) is accepted


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/a/b/", "/a/b"),
        ("//a//b", "/a/b"),
        ("/a/../b/.", "/b"),
        ("/../../a", "/a"),
        ("//evil.example", "/evil.example"),
    ],
)
def test_clean_path(path: str, expected: str) -> None:
    assert clean_path(path) == expected


async def test_unclean_paths_are_redirected(client: httpx.AsyncClient) -> None:
    found = await client.get("/a/b/?x=1%20")
    assert (found.status_code, found.headers["location"]) == (301, "/a/b?x=1%20")
    found = await client.post("/a//p")
    assert (found.status_code, found.headers["location"]) == (307, "/a/p")
    followed = await client.post("/a//p", follow_redirects=True)
    assert followed.text == "posted"


async def test_foreign_host_is_refused_with_an_empty_body(client: httpx.AsyncClient) -> None:
    refused = await client.get("/a/b", headers={"Host": "evil.example"})
    assert (refused.status_code, refused.content) == (403, b"")


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "DELETE"])
async def test_foreign_origin_is_refused(client: httpx.AsyncClient, method: str) -> None:
    refused = await client.request(method, "/a/b", headers={"Origin": "https://evil.example"})
    assert (refused.status_code, refused.content) == (403, b"")
    assert "access-control-allow-origin" not in refused.headers


async def test_own_pages_and_programs_need_no_permission(client: httpx.AsyncClient) -> None:
    base = str(client.base_url).rstrip("/")
    for headers in ({}, {"Origin": base}):
        found = await client.get("/a/b", headers=headers)
        assert found.status_code == 200
        assert "access-control-allow-origin" not in found.headers


@pytest.mark.parametrize(
    "origin",
    ["http://localhost:3000", "app://obsidian.md", "https://mine.example", "chrome-extension://id"],
)
async def test_known_origins_are_told_so(client: httpx.AsyncClient, origin: str) -> None:
    found = await client.get("/a/b", headers={"Origin": origin})
    assert found.headers["access-control-allow-origin"] == origin
    assert found.headers["vary"] == "Origin"
    refused = await client.get("/none", headers={"Origin": origin})
    assert refused.headers["access-control-allow-origin"] == origin


async def test_preflight(client: httpx.AsyncClient) -> None:
    headers = {
        "Origin": "http://localhost:3000",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    found = await client.options("/a/b", headers=headers)
    assert (found.status_code, found.content) == (204, b"")
    assert found.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "POST" in found.headers["access-control-allow-methods"].split(",")
    assert "Content-Type" in found.headers["access-control-allow-headers"].split(",")
    assert found.headers["access-control-max-age"] == "43200"


async def test_options_without_origin_is_empty(client: httpx.AsyncClient) -> None:
    found = await client.options("/a/b")
    assert (found.status_code, found.content) == (204, b"")


async def test_any_origin_when_the_owner_says_so() -> None:
    config = loopback_config(HOME, origins=("*",))
    app = Guard(Litestar([answer], logging_config=None, openapi_config=None), config, KeyRing(HOME))
    async with served(app) as base, httpx.AsyncClient(base_url=base) as client:
        found = await client.get("/a/b", headers={"Origin": "https://any.example"})
        assert found.headers["access-control-allow-origin"] == "*"
        assert "vary" not in found.headers
