"""A registry of this protocol on loopback: tokens, manifests, blobs, uploads; and faults on demand.

Real HTTP over real sockets. `Faults` describe what goes wrong next; every request is recorded.
"""

from __future__ import annotations

import asyncio
import base64
import collections
import collections.abc
import contextlib
import hashlib
import json
import re
import secrets
import socket
import urllib.parse
from dataclasses import dataclass, field
from typing import Self

from aiohttp import web
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CHUNK_BYTES = 256 << 10


@dataclass
class Faults:
    """Counters go down as faults happen; bytes count from the start of one answer's body."""

    drop_after_bytes: int = 0
    drops: int = 0
    stall_after_bytes: int = 0
    stalls: int = 0
    statuses: list[int] = field(default_factory=list[int])
    upload_pause_seconds: float = 0
    upload_statuses: list[int] = field(default_factory=list[int])
    ignores_ranges: bool = False
    shifts_range: int = 0
    lies_about_length: int = 0
    flips_byte_at: int = -1
    token_cycles: int = 0
    manifest_status: tuple[int, str] | None = None
    redirect: str = ""
    bytes_per_second: int = 0


class Registry:
    """Serves on 127.0.0.1 and a free port until closed. `needs_token` turns authentication on."""

    def __init__(self, *, needs_token: bool = False) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], bytes] = {}
        self.faults = Faults()
        self.needs_token = needs_token
        self.requests: list[tuple[str, str]] = []
        self.queries: list[str] = []
        self.hides_blobs = False
        self.sent_bytes: collections.Counter[str] = collections.Counter()
        self.user_agents: set[str] = set()
        self.accepted: set[str] = set()
        self.authorizations: set[str] = set()
        self.chunk_bytes = CHUNK_BYTES
        self.received_bytes = 0
        self.uploads: dict[str, bytearray] = {}
        self._tokens: set[str] = set()
        self._runner: web.AppRunner | None = None
        self.host = ""

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=0, middlewares=[self._middleware])
        app.router.add_route("*", "/v2/", self._root)
        app.router.add_get("/token", self._token)
        repo = "/v2/{repo:[^/]+/[^/]+}"
        app.router.add_get(repo + "/manifests/{tag}", self._get_manifest)
        app.router.add_put(repo + "/manifests/{tag}", self._put_manifest)
        app.router.add_get(repo + "/blobs/{digest}", self._blob)
        app.router.add_post(repo + "/blobs/uploads/", self._begin_upload)
        app.router.add_patch(repo + "/blobs/uploads/{upload}", self._upload_part)
        app.router.add_put(repo + "/blobs/uploads/{upload}", self._finish_upload)
        app.router.add_get(repo + "/blobs/uploads/{upload}", self._upload_status)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        await web.SockSite(self._runner, listener).start()
        self.host = f"127.0.0.1:{listener.getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    # ---- what tests put in ----

    def add_blob(self, data: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        return digest

    def add_model(
        self, repo: str, tag: str, layers: list[tuple[str, bytes]], config: dict[str, object]
    ) -> bytes:
        """Layers are (media type suffix, content). The manifest's bytes."""
        encoded = json.dumps(config).encode()
        entries = [
            {
                "mediaType": f"application/vnd.ollama.image.{kind}",
                "digest": self.add_blob(data),
                "size": len(data),
            }
            for kind, data in layers
        ]
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "digest": self.add_blob(encoded),
                "size": len(encoded),
            },
            "layers": entries,
        }
        self.manifests[repo, tag] = json.dumps(manifest, indent=1).encode()
        return self.manifests[repo, tag]

    # ---- tokens ----

    @web.middleware
    async def _middleware(
        self, request: web.Request, handler: collections.abc.Callable[..., object]
    ) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        self.queries.append(request.query_string)
        self.authorizations.add(request.headers.get("Authorization", ""))
        self.user_agents.add(request.headers.get("User-Agent", ""))
        if self.needs_token and request.path.startswith("/v2/") and not self._is_known(request):
            realm = f"http://{self.host}/token"
            scope = "repository:library/model:pull"
            challenge = f'Bearer realm="{realm}",service="{self.host}",scope="{scope}"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        if self.faults.statuses and "/blobs/sha256" in request.path and request.method == "GET":
            return web.Response(status=self.faults.statuses.pop(0), text="not now")
        return await handler(request)  # type: ignore[no-any-return,misc]

    def _is_known(self, request: web.Request) -> bool:
        if self.faults.token_cycles > 0:
            self.faults.token_cycles -= 1
            return False
        return request.headers.get("Authorization", "").removeprefix("Bearer ") in self._tokens

    async def _token(self, request: web.Request) -> web.Response:
        public, _, signature = request.headers["Authorization"].partition(":")
        url = f"http://{self.host}{request.raw_path}"
        empty = base64.b64encode(hashlib.sha256(b"").hexdigest().encode()).decode()
        blob = base64.b64decode(public)
        key = Ed25519PublicKey.from_public_bytes(blob[-32:])
        try:
            key.verify(base64.b64decode(signature), f"GET,{url},{empty}".encode())
        except InvalidSignature:
            return web.Response(status=403, text="bad signature")
        token = secrets.token_hex(16)
        self._tokens.add(token)
        return web.json_response({"token": token})

    # ---- reading ----

    async def _root(self, _: web.Request) -> web.Response:
        return web.json_response({})

    async def _get_manifest(self, request: web.Request) -> web.Response:
        self.accepted.add(request.headers.get("Accept", ""))
        if self.faults.manifest_status:
            status, text = self.faults.manifest_status
            return web.Response(status=status, text=text)
        body = self.manifests.get((request.match_info["repo"], request.match_info["tag"]))
        if body is None:
            return web.Response(status=404, text='{"errors":[]}')
        return web.Response(body=body, content_type=MANIFEST_TYPE)

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        digest = request.match_info["digest"]
        if self.faults.redirect:
            target = self.faults.redirect.format(path=request.path)
            return web.Response(status=307, headers={"Location": target})
        if digest not in self.blobs or self.hides_blobs:
            return web.Response(status=404)
        data = self.blobs[digest]
        start, end, status = self._range(request, len(data))
        if start >= len(data):
            return web.Response(status=416)
        headers = {"Content-Length": str(end - start + self.faults.lies_about_length)}
        if status == 206:
            shown = start + self.faults.shifts_range
            headers["Content-Range"] = f"bytes {shown}-{end - 1}/{len(data)}"
        answer = web.StreamResponse(status=status, headers=headers)
        await answer.prepare(request)
        if request.method != "HEAD":
            # A client may leave whenever it likes.
            with contextlib.suppress(ConnectionError):
                await self._send(request, answer, data, start, end, digest)
        return answer

    def _range(self, request: web.Request, size: int) -> tuple[int, int, int]:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if match is None or self.faults.ignores_ranges:
            return 0, size, 200
        return int(match[1]), min(int(match[2] or size) + 1, size), 206

    async def _send(
        self,
        request: web.Request,
        answer: web.StreamResponse,
        data: bytes,
        start: int,
        end: int,
        digest: str,
    ) -> None:
        sent = 0
        while start + sent < end:
            chunk = bytearray(data[start + sent : min(start + sent + self.chunk_bytes, end)])
            flipped = self.faults.flips_byte_at - start - sent
            if 0 <= flipped < len(chunk):
                chunk[flipped] ^= 1
            await answer.write(bytes(chunk))
            sent += len(chunk)
            self.sent_bytes[digest] += len(chunk)
            if self.faults.bytes_per_second:
                await asyncio.sleep(len(chunk) / self.faults.bytes_per_second)
            if request.transport is None:
                return
            if self.faults.drops > 0 and sent >= self.faults.drop_after_bytes:
                self.faults.drops -= 1
                request.transport.abort()
                return
            if self.faults.stalls > 0 and sent >= self.faults.stall_after_bytes:
                self.faults.stalls -= 1
                await asyncio.sleep(3600)

    # ---- writing ----

    async def _begin_upload(self, request: web.Request) -> web.Response:
        query = urllib.parse.parse_qs(request.query_string)
        if query.get("mount", [""])[0] in self.blobs:
            return web.Response(status=201)
        upload = secrets.token_hex(8)
        self.uploads[upload] = bytearray()
        location = f"http://{self.host}{request.path}{upload}"
        return web.Response(status=202, headers={"Location": location})

    async def _upload_part(self, request: web.Request) -> web.Response:
        held = self.uploads.get(request.match_info["upload"])
        if held is None:
            return web.Response(status=404)
        if self.faults.upload_statuses:
            return web.Response(status=self.faults.upload_statuses.pop(0), text="not now")
        match = re.fullmatch(r"(?:bytes )?(\d+)-(\d+)", request.headers.get("Content-Range", ""))
        if match and int(match[1]) != len(held):
            return web.Response(status=416, headers={"Range": f"0-{len(held) - 1}"})
        async for chunk in request.content.iter_any():
            held += chunk
            self.received_bytes += len(chunk)
            await asyncio.sleep(self.faults.upload_pause_seconds)
            if self.faults.drops > 0 and len(held) >= self.faults.drop_after_bytes:
                self.faults.drops -= 1
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
        location = f"http://{self.host}{request.path}"
        headers = {"Location": location, "Range": f"0-{len(held) - 1}"}
        return web.Response(status=202, headers=headers)

    async def _upload_status(self, request: web.Request) -> web.Response:
        held = self.uploads.get(request.match_info["upload"])
        if held is None:
            return web.Response(status=404)
        return web.Response(status=204, headers={"Range": f"0-{max(len(held) - 1, 0)}"})

    async def _finish_upload(self, request: web.Request) -> web.Response:
        held = self.uploads.pop(request.match_info["upload"])
        held += await request.read()
        digest = request.query["digest"]
        if f"sha256:{hashlib.sha256(held).hexdigest()}" != digest:
            return web.Response(status=400, text="digest invalid")
        self.blobs[digest] = bytes(held)
        return web.Response(status=201)

    async def _put_manifest(self, request: web.Request) -> web.Response:
        body = await request.read()
        decoded = json.loads(body)
        for layer in [decoded["config"], *decoded["layers"]]:
            if layer["digest"] not in self.blobs:
                return web.Response(status=400, text=f"blob unknown: {layer['digest']}")
        self.manifests[request.match_info["repo"], request.match_info["tag"]] = body
        return web.Response(status=201)
