"""The table of contract.md §4.1-4.3."""

import pytest

from daemon.models.name import (
    InvalidName,
    ModelName,
    is_cloud_reference,
    name_from_parts,
    parse_name,
)

DEFAULT = ("registry.ollama.ai", "library")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("llama3", (*DEFAULT, "llama3", "latest")),
        ("  llama3\n", (*DEFAULT, "llama3", "latest")),
        ("llama3:8b", (*DEFAULT, "llama3", "8b")),
        ("llama3:local", (*DEFAULT, "llama3", "latest")),
        ("llama3:8b:LOCAL", (*DEFAULT, "llama3", "8b")),
        ("me/llama3:8b", ("registry.ollama.ai", "me", "llama3", "8b")),
        ("host:5000/me/m:t", ("host:5000", "me", "m", "t")),
        ("host:5000/me/m", ("host:5000", "me", "m", "latest")),
        ("https://host/me/m:t", ("host", "me", "m", "t")),
        ("_host/_ns/_m:_t", ("_host", "_ns", "_m", "_t")),
        (
            "registry.ollama.ai/library/dolphin-mistral:7b-v2.6-dpo-laser-q6_K",
            (*DEFAULT, "dolphin-mistral", "7b-v2.6-dpo-laser-q6_K"),
        ),
        (
            "h" * 350 + "/" + "n" * 80 + "/" + "m" * 80 + ":" + "t" * 80,
            ("h" * 350, "n" * 80, "m" * 80, "t" * 80),
        ),
    ],
)
def test_parses(text: str, parts: tuple[str, ...]) -> None:
    assert parse_name(text).parts == parts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        ":tag",
        "model:",
        "/model",
        "ns/",
        "/ns/model",
        "host//model",
        "a/b/c/d",
        "host/name:space/model:tag",
        "host/na.me/model",
        ".model",
        "-model",
        "model:.tag",
        "model:-tag",
        "../../etc/passwd",
        "..",
        "mo del",
        "model\x00",
        "modèl",
        "model@sha256:" + "0" * 64,
        "m" * 81,
        "m:" + "t" * 81,
        "n" * 81 + "/m",
        "h" * 351 + "/n/m",
        "x" * 100_000,
        "\\\\server\\share",
    ],
)
def test_refuses(text: str) -> None:
    with pytest.raises(InvalidName, match=r"^invalid model name$"):
        parse_name(text)


def test_both_source_suffixes_are_refused_by_name() -> None:
    with pytest.raises(InvalidName, match='use either :local or :cloud, not both: "a:cloud:local"'):
        parse_name("a:cloud:local")


@pytest.mark.parametrize(
    ("text", "short", "full"),
    [
        ("llama3", "llama3:latest", "registry.ollama.ai/library/llama3:latest"),
        ("Registry.Ollama.AI/Library/x:y", "x:y", "Registry.Ollama.AI/Library/x:y"),
        ("me/x:y", "me/x:y", "registry.ollama.ai/me/x:y"),
        ("hf.co/library/x:y", "hf.co/library/x:y", "hf.co/library/x:y"),
    ],
)
def test_display_forms(text: str, short: str, full: str) -> None:
    name = parse_name(text)
    assert (name.short, name.full, str(name)) == (short, full, short)
    assert parse_name(name.short).same_as(name)


def test_case_is_kept_but_not_compared() -> None:
    assert parse_name("Foo").same_as(parse_name("fOO:LATEST"))
    assert parse_name("Foo") != parse_name("foo")


@pytest.mark.parametrize(
    "parts", [("a", "b", "c"), ("a", "b", "c", ".."), ("a", "b", "c", "d", "e")]
)
def test_parts_from_disk_are_checked(parts: tuple[str, ...]) -> None:
    with pytest.raises(InvalidName):
        name_from_parts(parts)
    assert name_from_parts(("a", "b", "c", "d")) == ModelName("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("x:cloud", True), ("x:8b-CLOUD", True), ("x", False), ("x-cloud", False), ("cloud/x", False)],
)
def test_cloud_references(text: str, expected: bool) -> None:
    assert is_cloud_reference(text) is expected
