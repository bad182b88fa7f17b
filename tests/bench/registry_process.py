"""A registry for benchmarks, in a process of its own: `python -m tests.bench.registry_process FOLDER`.

Serves the files of FOLDER, `manifest` and blobs by digest, as fast as the kernel sends them. Prints
its host and port.
"""

from __future__ import annotations

import pathlib
import socket
import sys

from aiohttp import web

from tests.registry.server import MANIFEST_TYPE


def application(folder: pathlib.Path) -> web.Application:
    async def root(_: web.Request) -> web.Response:
        return web.json_response({})

    async def manifest(_: web.Request) -> web.Response:
        return web.Response(body=(folder / "manifest").read_bytes(), content_type=MANIFEST_TYPE)

    async def blob(request: web.Request) -> web.FileResponse:
        return web.FileResponse(folder / request.match_info["digest"], chunk_size=1 << 20)

    app = web.Application()
    app.router.add_get("/v2/", root)
    app.router.add_get("/v2/{space}/{model}/manifests/{tag}", manifest)
    app.router.add_get("/v2/{space}/{model}/blobs/{digest}", blob)
    return app


def main() -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    print(f"127.0.0.1:{listener.getsockname()[1]}", flush=True)
    folder = pathlib.Path(sys.argv[1])
    web.run_app(application(folder), sock=listener, print=None, access_log=None)


if __name__ == "__main__":
    main()
