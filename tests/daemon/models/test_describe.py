"""Lists and show, to the field: presence, order, text forms."""

import datetime
import os
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from daemon.errors import Invalid, LoadFailed
from daemon.models import manifest as media
from daemon.models.describe import capabilities_of, list_models, parameters_text, show
from daemon.models.manifest import (
    ImageConfig,
    Layer,
    Manifest,
    StoredMessage,
    encode_config,
    layer_of,
)
from daemon.models.modelfile import parse
from daemon.models.name import parse_name
from tests.daemon.models.shelf import Shelf, gguf, hex_of

JINJA = "{% if tools %}{{ tools }}{% endif %}<think>{{ messages }}</think>"


@pytest.fixture
async def shelf(tmp_path: pathlib.Path) -> AsyncIterator[Shelf]:
    shelf = Shelf(tmp_path)
    yield shelf
    await shelf.conversions.close()


async def shown(shelf: Shelf, name: str, **options: Any) -> dict[str, Any]:
    model = shelf.store.resolve(parse_name(name))
    return msgspec.json.decode(
        msgspec.json.encode(
            await show(model, shelf.conversions, shelf.creator.target_for, **options)
        )
    )


async def listed(shelf: Shelf) -> list[dict[str, Any]]:
    return msgspec.json.decode(
        msgspec.json.encode(
            await list_models(shelf.store, shelf.conversions, shelf.creator.target_for)
        )
    )


async def shelve(
    shelf: Shelf, name: str, data: bytes, *texts: tuple[str, str], **config: Any
) -> None:
    """A manifest as another server would have left it: nothing inspected, nothing converted."""
    layers = [
        Layer(media_type=media.MODEL, digest=f"sha256:{await shelf.put(data)}", size=len(data))
    ]
    blobs = [encode_config(ImageConfig(**config)), *(text.encode() for _, text in texts)]
    layers += [layer_of(text.encode(), media_type) for media_type, text in texts]
    manifest = Manifest(config=layer_of(blobs[0], media.CONFIG_TYPE), layers=tuple(layers))
    await shelf.store.write_manifest(parse_name(name), manifest, blobs)


async def test_list(shelf: Shelf) -> None:
    assert await listed(shelf) == []
    await shelf.make("old", gguf())
    await shelf.make("me/new:t", gguf(look=2), system="s")
    for name, seconds in (("library/old/latest", 1000), ("me/new/t", 2000)):
        path = shelf.store.root / "manifests/registry.ollama.ai" / name
        os.utime(path, (seconds, seconds))
    newest, oldest = await listed(shelf)
    assert (newest["name"], newest["model"], oldest["name"]) == (
        "me/new:t",
        "me/new:t",
        "old:latest",
    )
    model = shelf.store.resolve(parse_name("old"))
    modified_at = datetime.datetime.fromisoformat(oldest.pop("modified_at"))
    assert modified_at.timestamp() == 1000
    assert modified_at.tzinfo is not None
    assert oldest == {
        "name": "old:latest",
        "model": "old:latest",
        "size": model.manifest.total_bytes,
        "digest": model.digest,
        "details": {
            "parent_model": "a.gguf", "format": "gguf", "family": "llama", "families": ["llama"],
            "parameter_size": "1.1B", "quantization_level": "Q4_K_M", "context_length": 2048,
            "embedding_length": 64,
        },
        "capabilities": ["completion"],
    }  # fmt: skip
    assert len(model.digest) == 64


async def test_list_describes_what_it_never_saw_and_survives_damage(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.models.describe.LIST_PATIENCE_SECONDS", 0.3)
    await shelve(shelf, "seen", gguf(), model_family="llama", file_type="unknown")
    await shelve(shelf, "slow", gguf(look_seconds=1.5), model_family="x", context_length=5)
    await shelve(shelf, "bad", gguf(fail="malformed", fails_at="inspect"))
    (shelf.store.root / "manifests/registry.ollama.ai/library/bad/broken").write_text("{")
    found = {entry["name"]: entry for entry in await listed(shelf)}
    assert found.keys() == {"seen:latest", "slow:latest", "bad:latest"}
    assert found["slow:latest"]["details"]["context_length"] == 5
    assert "capabilities" not in found["slow:latest"]
    assert found["bad:latest"]["details"]["families"] is None
    for data in (gguf(look_seconds=1.5), gguf()):
        await shelf.conversions.inspect(hex_of(data))
    again = {entry["name"]: entry for entry in await listed(shelf)}
    assert again["slow:latest"]["capabilities"] == ["completion"]
    assert again["seen:latest"]["details"]["quantization_level"] == "Q4_K_M"


async def test_show(shelf: Shelf) -> None:
    await shelf.make("m", gguf(template=JINJA), system='say "hi"\nor not', license=["MIT", "BSD"],
                     parameters={"stop": ["<a>", "b\n"], "temperature": 0.5},
                     messages=[StoredMessage(role="user", content="hi")])  # fmt: skip
    answer = await shown(shelf, "m")
    digest = hex_of(gguf(template=JINJA))
    assert answer.keys() == {
        "details", "model_info", "modified_at", "license", "modelfile", "parameters", "template",
        "system", "messages", "tensors", "capabilities", "hearth",
    }  # fmt: skip
    assert answer["license"] == "MIT\nBSD"
    assert answer["template"] == JINJA
    assert answer["capabilities"] == ["tools", "thinking", "completion"]
    assert "context_length" not in answer["details"]
    assert answer["model_info"] == {
        "general.architecture": "llama",
        "llama.context_length": 2048,
        "tokenizer.ggml.tokens": None,
        "general.parameter_count": 1_100_000_000,
    }
    assert answer["tensors"] == [{"name": "t", "type": "Q8_0", "shape": [2, 2]}]
    assert answer["messages"] == [{"role": "user", "content": "hi"}]
    assert answer["parameters"] == (
        'stop                           "<a>"\n'
        'stop                           "b\\n"\n'
        "temperature                    0.5"
    )
    assert answer["hearth"]["artifacts"] == {
        "onnx-cpu": {"exactness": {"exact": 1, "scale-rounded": 0, "re-encoded": 0},
                     "file_bytes": 1234, "resident_bytes": {}, "kv_bytes_per_token": 8}
    }  # fmt: skip
    lines = answer["modelfile"].splitlines()
    assert lines[:5] == [
        '# Modelfile generated by "ollama show"',
        "# To build a new Modelfile based on this, replace FROM with:",
        "# FROM m:latest",
        "",
        f"FROM {shelf.store.blobs.path(digest)}",
    ]
    assert answer["hearth"]["estimates"] == {"onnx": 1}
    again = parse(answer["modelfile"])
    assert again.values("template") == []
    assert again.last("system") == 'say "hi"\nor not'
    assert sorted(again.parameters) == [("stop", "<a>"), ("stop", "b\n"), ("temperature", "0.5")]
    assert (again.values("license"), again.messages) == (["MIT", "BSD"], [("user", "hi")])


async def test_show_options_and_verbose(shelf: Shelf) -> None:
    await shelf.make("m", gguf(), parameters={"top_k": 1})
    answer = await shown(shelf, "m", verbose=True, system="other", options={"top_k": 9})
    assert answer["model_info"]["tokenizer.ggml.tokens"] == ["a", "b"]
    assert "PARAMETER top_k 9" in answer["modelfile"]
    assert "SYSTEM other" in answer["modelfile"]
    assert "system" not in answer
    assert answer["parameters"].split() == ["top_k", "1"]
    assert answer["template"] == "{{ .Prompt }}"
    assert "TEMPLATE {{ .Prompt }}" in answer["modelfile"]


async def test_show_of_damaged_weights_says_so(shelf: Shelf) -> None:
    await shelve(shelf, "m", gguf(fail="malformed", fails_at="inspect"))
    with pytest.raises(Invalid, match="says malformed"):
        await shown(shelf, "m")
    shelf.store.blobs.remove(hex_of(gguf(fail="malformed", fails_at="inspect")))
    with pytest.raises(LoadFailed, match="missing"):
        await shown(shelf, "m")


async def test_show_without_weights(shelf: Shelf) -> None:
    config = encode_config(ImageConfig(remote_host="h", remote_model="r", capabilities=("vision",)))
    manifest = Manifest(config=layer_of(config, media.CONFIG_TYPE))
    await shelf.store.write_manifest(parse_name("stub"), manifest, [config])
    answer = await shown(shelf, "stub")
    assert (answer["model_info"], answer["capabilities"]) == ({}, ["vision"])


GO_TOOLS = (
    "{{ if .Suffix }}{{ .Suffix }}{{ end }}{{ range .Messages }}{{ .Content }}{{ end }}{{ .Tools }}"
)


@pytest.mark.parametrize(
    ("wanted", "go_template", "config", "expected"),
    [
        ({}, "", {}, ("completion",)),
        ({"pools": True}, "", {}, ("embedding",)),
        ({"template": JINJA}, "", {}, ("tools", "thinking", "completion")),
        ({}, GO_TOOLS, {}, ("tools", "completion", "insert")),
        ({"template": "{{ messages }}"}, GO_TOOLS, {}, ("tools", "completion", "insert")),
        ({"template": JINJA}, "{{ .Prompt }}", {}, ("tools", "thinking", "completion")),
        ({}, "", {"capabilities": ("image",)}, ("image", "completion")),
        ({}, "", {"model_family": "gptoss"}, ("completion", "thinking")),
    ],
)
async def test_capabilities(
    shelf: Shelf,
    wanted: dict[str, Any],
    go_template: str,
    config: dict[str, Any],
    expected: tuple[str, ...],
) -> None:
    texts = [(media.TEMPLATE, go_template)] if go_template else []
    await shelve(shelf, "m", gguf(**wanted), *texts, **config)
    model = shelf.store.resolve(parse_name("m"))
    inspection = await shelf.conversions.inspect(model.model_digest)
    assert sorted(capabilities_of(model, inspection)) == sorted(expected)


def test_parameters_text_of_nothing() -> None:
    assert parameters_text({}) == ""
