"""A store on a real disk, and what tests put into it."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import AsyncIterator

import pytest

from daemon.models import manifest as media
from daemon.models.manifest import ImageConfig, Layer, Manifest, encode_config, layer_of
from daemon.models.marker import claim
from daemon.models.name import parse_name
from daemon.models.store import Store

CONTENT = b"GGUF" + bytes(range(256)) * 4097


def open_store(root: pathlib.Path, *, is_foreign: bool, no_prune: bool = False) -> Store:
    return Store(root, claim(root, is_foreign=is_foreign), no_prune=no_prune)


def hex_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def store(tmp_path: pathlib.Path) -> Store:
    return open_store(tmp_path / "models", is_foreign=False)


async def stream(data: bytes, piece: int = 65536) -> AsyncIterator[bytes]:
    for start in range(0, len(data), piece):
        yield data[start : start + piece]


def nothing(_done: int, _total: int) -> None: ...


async def add(store: Store, name: str, weights: bytes = CONTENT, **texts: str) -> Manifest:
    digest = await store.put_blob(stream(weights))
    layers = [Layer(media_type=media.MODEL, digest=f"sha256:{digest}", size=len(weights))]
    for kind, text in texts.items():
        await store.put_bytes(text.encode())
        layers.append(layer_of(text.encode(), getattr(media, kind)))
    config = encode_config(ImageConfig(model_format="gguf", model_family="llama"))
    await store.put_bytes(config)
    manifest = Manifest(config=layer_of(config, media.CONFIG_TYPE), layers=tuple(layers))
    await store.write_manifest(parse_name(name), manifest)
    return manifest


def blob_names(store: Store) -> set[str]:
    return {path.name for path in store.blobs.folder.iterdir()}
