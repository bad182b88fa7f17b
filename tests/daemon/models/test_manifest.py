"""Bytes of manifests, configs and small layers, and lenient reading."""

import hashlib

import pytest

from daemon.errors import Invalid
from daemon.models import manifest as media
from daemon.models.manifest import (
    ImageConfig,
    Layer,
    Manifest,
    StoredMessage,
    decode_config,
    decode_manifest,
    encode_config,
    encode_manifest,
    encode_messages,
    encode_parameters,
    human_parameter_count,
    mentioned_digests,
    parse_digest,
)

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"


def test_manifest_bytes() -> None:
    layer = Layer(media_type=media.MODEL, digest=DIGEST, size=24, source="a.gguf")
    config = Layer(media_type=media.CONFIG_TYPE, digest=DIGEST, size=7)
    assert encode_manifest(Manifest(config=config, layers=(layer,))) == (
        b'{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json",'
        b'"config":{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"'
        + DIGEST.encode()
        + b'","size":7},"layers":[{"mediaType":"application/vnd.ollama.image.model","digest":"'
        + DIGEST.encode()
        + b'","size":24,"from":"a.gguf"}]}\n'
    )


def test_manifest_round_trip() -> None:
    layer = Layer(media_type=media.TENSOR, digest=DIGEST, size=1, source="x:y", name="t.weight")
    manifest = Manifest(config=Layer(media_type="c", digest=DIGEST, size=2), layers=(layer, layer))
    assert decode_manifest(encode_manifest(manifest)) == manifest
    assert manifest.total_bytes == 4
    assert manifest.digests == {HEX}


@pytest.mark.parametrize(
    "data",
    [b"{}", b'{"config":null,"layers":null}', b'{"unknown":[1],"config":{"digest":""}}'],
)
def test_lenient_manifest(data: bytes) -> None:
    manifest = decode_manifest(data)
    assert (manifest.layers, manifest.config.digest, manifest.total_bytes) == ((), "", 0)


@pytest.mark.parametrize("data", [b"", b"[]", b'{"layers":[3]}', b"\xff"])
def test_no_manifest(data: bytes) -> None:
    with pytest.raises(Invalid):
        decode_manifest(data)


def test_mentions_are_found_in_what_cannot_be_parsed() -> None:
    other = "F" * 64
    data = f'{{"layers":[{{"digest":"{DIGEST}"}}, garbage sha256-{other} sha256:beef'.encode()
    assert mentioned_digests(data) == {HEX, other.lower()}


def test_config_bytes() -> None:
    config = ImageConfig(
        model_format="gguf",
        model_family="llama",
        model_families=("llama",),
        model_type="1.1B",
        file_type="Q4_K_M",
        renderer="r",
    )
    assert encode_config(config) == (
        b'{"model_format":"gguf","model_family":"llama","model_families":["llama"],'
        b'"model_type":"1.1B","file_type":"Q4_K_M","renderer":"r",'
        b'"architecture":"amd64","os":"linux"}\n'
    )
    assert encode_config(ImageConfig()).startswith(
        b'{"model_format":"","model_family":"","model_families":null,"model_type":"","file_type":""'
    )
    assert decode_config(encode_config(config)) == config


def test_config_keeps_what_it_can_read() -> None:
    config = decode_config(b'{"model_family":"llama","context_length":"no","rootfs":{"x":1}}')
    assert config == ImageConfig(model_family="llama")
    assert decode_config(b"nonsense") == ImageConfig()


def test_parameters_hash_as_other_servers_hash_them() -> None:
    data = encode_parameters({"top_k": 10.0, "temperature": 1.0, "stop": ["USER:", "ASSISTANT:"]})
    assert data == b'{"stop":["USER:","ASSISTANT:"],"temperature":1,"top_k":10}\n'
    assert hashlib.sha256(data).hexdigest().startswith("1d0ad712")


def test_text_is_escaped_as_go_does() -> None:
    messages = (StoredMessage(role="user", content="<a> & \u2028 é"),)
    assert encode_messages(messages) == (
        '[{"role":"user","content":"\\u003ca\\u003e \\u0026 \\u2028 é"}]\n'.encode()
    )


@pytest.mark.parametrize("text", [DIGEST, f"sha256-{HEX}", f"sha256:{HEX.upper()}"])
def test_digest_spellings(text: str) -> None:
    assert parse_digest(text) == HEX


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEX,
        "sha256:" + HEX[:-1],
        f"sha256:{HEX}0",
        f"sha256:{HEX}\n",
        "sha256:../" + HEX[3:],
        f"md5:{HEX}",
    ],
)
def test_no_digest(text: str) -> None:
    with pytest.raises(Invalid, match="invalid digest format"):
        parse_digest(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1K"),
        (24_600, "25K"),
        (1_000_000, "1M"),
        (137_022_720, "137.02M"),
        (7_000_000_000, "7B"),
        (1_100_048_384, "1.1B"),
        (8_030_261_248, "8.0B"),
    ],
)
def test_human_parameter_count(count: int, text: str) -> None:
    assert human_parameter_count(count) == text
