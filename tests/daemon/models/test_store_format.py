"""The store as contract.md §5 has it, by a reader and a writer that know nothing but those rules."""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from daemon.models.manifest import StoredMessage
from daemon.models.marker import claim
from daemon.models.name import parse_name
from daemon.models.store import Store
from tests.daemon.models.shelf import Shelf, gguf, hex_of

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.ollama.image."
CONFIG_KEYS = (
    "model_format", "model_family", "model_families", "model_type", "file_type", "renderer",
    "parser", "requires", "remote_host", "remote_model", "capabilities", "context_length",
    "embedding_length", "base_name", "draft", "architecture", "os",
)  # fmt: skip
LAYER_KEYS = ("mediaType", "digest", "size", "from", "name")


class Rules:
    """Reads a store, asserting every rule of §5 on the way."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root

    def names(self) -> Iterator[str]:
        for path in sorted((self.root / "manifests").rglob("*")):
            if path.is_file():
                assert path.stat().st_mode & 0o777 == 0o644
                yield "/".join(path.relative_to(self.root / "manifests").parts)
            else:
                assert path.stat().st_mode & 0o777 == 0o755

    def manifest(self, name: str) -> dict[str, Any]:
        data = (self.root / "manifests" / name).read_bytes()
        manifest = json.loads(data)
        assert list(manifest) == ["schemaVersion", "mediaType", "config", "layers"]
        assert (manifest["schemaVersion"], manifest["mediaType"]) == (2, MANIFEST)
        assert manifest["config"]["mediaType"] == CONFIG
        for layer in (manifest["config"], *manifest["layers"]):
            assert list(layer) == [key for key in LAYER_KEYS if key in layer]
        whole = json.dumps(manifest, separators=(",", ":"), ensure_ascii=False) + "\n"
        assert data.decode() == whole
        return manifest

    def blob(self, layer: dict[str, Any]) -> bytes:
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", layer["digest"])
        path = self.root / "blobs" / layer["digest"].replace(":", "-")
        assert path.stat().st_mode & 0o777 == 0o644
        data = path.read_bytes()
        assert len(data) == layer["size"]
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == layer["digest"]
        return data

    def config(self, name: str) -> dict[str, Any]:
        data = self.blob(self.manifest(name)["config"])
        config = json.loads(data)
        assert data.endswith(b"\n")
        assert list(config) == [key for key in CONFIG_KEYS if key in config]
        assert set(CONFIG_KEYS[:5]) | {"architecture", "os"} <= set(config)
        return config

    def texts(self, name: str) -> dict[str, list[bytes]]:
        """Content by the end of the media type, weights left out."""
        found: dict[str, list[bytes]] = {}
        for layer in self.manifest(name)["layers"]:
            kind = layer["mediaType"].removeprefix(LAYER)
            data = self.blob(layer)
            if kind != "model":
                found.setdefault(kind, []).append(data)
        return found


@pytest.fixture
async def shelf(tmp_path: pathlib.Path) -> AsyncIterator[Shelf]:
    shelf = Shelf(tmp_path)
    yield shelf
    await shelf.conversions.close()


async def test_what_we_write_is_read_by_the_rules(shelf: Shelf) -> None:
    await shelf.make("Base", gguf(), system="bé kind <b>", license=["MIT", "BSD"],
                     template="{{ .Prompt }}",
                     parameters={"top_k": 5, "stop": ["USER:", "a"], "temperature": 0.5},
                     messages=[StoredMessage(role="user", content="hi")])  # fmt: skip
    await shelf.create(model="me/persona:v1", source="base", system="other", renderer="r")
    rules = Rules(shelf.store.root)
    base, persona = "registry.ollama.ai/library/Base/latest", "registry.ollama.ai/me/persona/v1"
    assert list(rules.names()) == [base, persona]
    weights = rules.manifest(base)["layers"][0]
    assert weights["mediaType"] == f"{LAYER}model"
    assert weights["from"] == "a.gguf"
    texts = rules.texts(base)
    assert texts["system"] == ["bé kind <b>".encode()]
    assert texts["template"] == [b"{{ .Prompt }}"]
    assert sorted(texts["license"]) == [b"BSD", b"MIT"]
    assert texts["params"] == [b'{"stop":["USER:","a"],"temperature":0.5,"top_k":5}\n']
    (messages,) = texts["messages"]
    assert messages.endswith(b"\n")
    assert json.loads(messages) == [{"role": "user", "content": "hi"}]
    assert rules.config(base)["model_format"] == "gguf"
    inherited = rules.manifest(persona)["layers"]
    assert {layer["from"] for layer in inherited if "from" in layer} == {"Base:latest"}
    assert rules.texts(persona)["system"] == [b"other"]
    assert rules.config(persona)["renderer"] == "r"
    every = {f"sha256-{path.name[7:]}" for path in (shelf.store.root / "blobs").iterdir()}
    assert every == {path.name for path in (shelf.store.root / "blobs").iterdir()}
    await shelf.store.copy(parse_name("base"), parse_name("copy"))
    copied = shelf.store.root / "manifests" / base.replace("Base", "copy")
    assert copied.read_bytes() == (shelf.store.root / "manifests" / base).read_bytes()


def write_store(root: pathlib.Path) -> str:
    """As another program may have written it; the hex digest of the manifest."""
    (root / "blobs").mkdir(parents=True)

    def blob(data: bytes, separator: str = "-") -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (root / "blobs" / f"sha256{separator}{digest}").write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def layer(kind: str, data: bytes, **more: str) -> dict[str, Any]:
        return {"mediaType": LAYER + kind, **blob(data), **more}

    config = {
        "model_format": "gguf", "model_family": "llama", "model_families": None,
        "model_type": "7B", "file_type": "Q4_0", "architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": ["sha256:1"]}, "history": [1],
    }  # fmt: skip
    manifest = {
        "layers": [
            {"mediaType": LAYER + "model", **blob(gguf(), ":"), "from": "parent:latest"},
            layer("prompt", b"old {{ .Prompt }}"),
            layer("system", b"be kind"),
            layer("license", b"MIT"),
            layer("license", b"BSD"),
            layer("params", b'{"num_keep":4,"stop":["a"]}'),
            layer("messages", b'[{"role":"user","content":"hi"}]'),
            layer("embed", b"ignored"),
            {"mediaType": "application/vnd.other.thing", **blob(b"unknown")},
        ],
        "config": {"mediaType": CONFIG, **blob(json.dumps(config).encode())},
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "annotations": {"a": "b"},
    }
    data = json.dumps(manifest, indent=1).encode()
    path = root / "manifests" / "localhost:5000" / "me" / "Model" / "V1"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    broken = root / "manifests" / "registry.ollama.ai" / "library" / "broken" / "latest"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"{")
    return hashlib.sha256(data).hexdigest()


async def test_what_others_wrote_by_the_rules_is_read(tmp_path: pathlib.Path) -> None:
    digest = write_store(tmp_path / "models")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    store = Store(tmp_path / "models", claim(tmp_path / "models", is_foreign=True))
    model = store.resolve(parse_name("LOCALHOST:5000/me/model:v1"))
    assert model.digest == digest
    assert model.name.short == "localhost:5000/me/Model:V1"
    assert (model.template, model.system, model.licenses) == (
        "old {{ .Prompt }}", "be kind", ("MIT", "BSD"),
    )  # fmt: skip
    assert model.parameters == {"num_keep": 4, "stop": ["a"]}
    assert model.messages == (StoredMessage(role="user", content="hi"),)
    assert model.parent_model == "parent:latest"
    assert model.model_digest == hex_of(gguf())
    assert model.require_weights().size == len(gguf())
    assert model.config.model_type == "7B"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
