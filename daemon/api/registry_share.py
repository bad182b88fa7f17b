"""`/v2/`: this shelf as a registry to pull from, where its owner shares it. Reading only.

Manifests by name and blobs by digest, as registries of the field give them, so that whoever can pull
from one can pull from here: another Hearth, or another server of this format, without a word to the
internet. Only blobs that a manifest of our own store names are given.
"""

from __future__ import annotations

import msgspec
from litestar import Controller, HttpMethod, Response, route
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

from daemon.api.file_answer import FileAnswer
from daemon.api.framing import json_response
from daemon.api.request import ApiRequest
from daemon.api.services import Rooms, Services
from daemon.api.system import READ
from daemon.errors import DaemonError, NotFound
from daemon.models.manifest import MANIFEST_TYPE, manifest_digest, parse_digest
from daemon.models.name import DEFAULT_HOST, ModelName, name_from_parts

_HEADERS = {"Docker-Distribution-Api-Version": "registry/2.0"}


class RegistryError(msgspec.Struct, frozen=True):
    code: str
    message: str


class RegistryErrors(msgspec.Struct, frozen=True):
    errors: tuple[RegistryError, ...]


class RegistryShareController(Controller):
    tags = ["registry"]
    path = "/v2"

    @route("/", http_method=READ)
    async def is_registry(self, services: Rooms) -> Response[bytes]:
        _require_shared(services)
        return json_response({}, headers=_HEADERS)

    @route("/{namespace:str}/{model:str}/manifests/{tag:str}", http_method=READ)
    async def manifest(
        self, namespace: FromPath[str], model: FromPath[str], tag: FromPath[str], services: Rooms
    ) -> Response[bytes]:
        _require_shared(services)
        try:
            data = services.store.manifest_bytes(_stored(services, namespace, model, tag))
        except DaemonError:
            return _unknown("MANIFEST_UNKNOWN", "manifest unknown")
        digest = f"sha256:{manifest_digest(data)}"
        headers = {**_HEADERS, "Docker-Content-Digest": digest}
        return Response(data, media_type=MANIFEST_TYPE, headers=headers)

    @route("/{namespace:str}/{model:str}/blobs/{digest:str}", http_method=READ)
    async def blob(
        self,
        namespace: FromPath[str],
        model: FromPath[str],
        digest: FromPath[str],
        request: ApiRequest,
        services: Rooms,
    ) -> Response[bytes]:
        """Whatever the name: the digest says all there is to say."""
        _require_shared(services)
        try:
            hex_digest = parse_digest(digest)
            _require_named(services, hex_digest)
            return FileAnswer(
                services.store.blobs.path(hex_digest),
                wanted_range=request.headers.get("range", ""),
                has_body=request.method == HttpMethod.GET,
                headers={
                    **_HEADERS,
                    "Content-Type": "application/octet-stream",
                    "Docker-Content-Digest": f"sha256:{hex_digest}",
                },
            )
        except DaemonError:
            return _unknown("BLOB_UNKNOWN", "blob unknown to registry")


def _require_shared(services: Services) -> None:
    """Raises NotFoundException: as if there were no such page."""
    if not services.config.share:
        raise NotFoundException


def _stored(services: Services, namespace: str, model: str, tag: str) -> ModelName:
    """The model of this name, whichever registry it once came from; the usual one's first.

    Raises NotFound, Invalid.
    """
    asked = name_from_parts((DEFAULT_HOST, namespace, model, tag))
    if found := services.store.find(asked):
        return found
    parts = [part.casefold() for part in asked.parts[1:]]
    for name in services.store.names():
        if [part.casefold() for part in name.parts[1:]] == parts:
            return name
    raise NotFound("manifest unknown")


def _require_named(services: Services, hex_digest: str) -> None:
    """Raises NotFound: unfinished uploads and what other programs left are nobody's to fetch."""
    if not any(hex_digest in stored.manifest.digests for stored in services.store.manifests()):
        raise NotFound("blob unknown to registry")


def _unknown(code: str, message: str) -> Response[bytes]:
    return json_response(RegistryErrors((RegistryError(code, message),)), 404, dict(_HEADERS))
