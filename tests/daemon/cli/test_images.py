"""Pictures that a prompt of `hearth run` names by their paths."""

from __future__ import annotations

import argparse
import base64
import json
import pathlib
from collections.abc import Iterator
from typing import Any, cast

import pytest

from daemon.cli.chat import Conversation, Sight, is_command
from daemon.cli.client import Client, ClientError
from daemon.cli.describe import print_model
from daemon.cli.images import MOST_BYTES, taken_out

PICTURE = b"\x89PNG"


@pytest.fixture(autouse=True)
def here(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    for name in ("a.png", "B.JPG", "two words.webp", "a.png.png"):
        (tmp_path / name).write_bytes(PICTURE + name.encode())
    (tmp_path / "folder.png").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def found(prompt: str) -> tuple[str, list[str], list[str]]:
    """(what is left, names of the pictures, what was told)."""
    told: list[str] = []
    rest, images = taken_out(prompt, told.append)
    names = [base64.b64decode(image).removeprefix(PICTURE).decode() for image in images]
    return rest, names, told


@pytest.mark.parametrize(
    ("prompt", "rest", "names"),
    [
        ("what is this? ./a.png", "what is this?", ["a.png"]),
        ("./a.png what is this?", "what is this?", ["a.png"]),
        ("~/B.JPG and ./a.png!", "and !", ["B.JPG", "a.png"]),
        ("see ./two words.webp", "see", ["two words.webp"]),
        ("see ./two\\ words.webp now", "see  now", ["two words.webp"]),
        ("see './two%20words.webp' now", "see  now", ["two words.webp"]),
        ('compare "./a.png" and (./B.JPG)', "compare  and ()", ["a.png", "B.JPG"]),
        ("one ./a.png\ntwo ./B.JPG", "one \ntwo", ["a.png", "B.JPG"]),
        ("./folder.png ./a.png", "./folder.png", ["a.png"]),
        ("./a.png.png", "", ["a.png.png"]),
        (
            "a.png is a name, http://x/./a.png another",
            "a.png is a name, http://x/./a.png another",
            [],
        ),
        ("no pictures / here", "no pictures / here", []),
    ],
)
def test_paths_become_pictures(prompt: str, rest: str, names: list[str]) -> None:
    assert found(prompt)[:2] == (rest, names)


def test_what_is_told() -> None:
    assert found("see ./none.png and ./a.png")[2] == [
        "none.png is no file: it stays text",
        "added image 'a.png'",
    ]
    assert found("see ./none.png")[0] == "see ./none.png"


def test_what_cannot_be_sent_is_refused(here: pathlib.Path) -> None:
    with (here / "large.png").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(ClientError, match="over 47 MiB"):
        found("./large.png")


SEEING = {"capabilities": ["completion", "vision"]}
BLIND = {"capabilities": ["completion"], "hearth": {"vision": {"refusal": "a type like no other"}}}


class Answers:
    """In the place of the client: says what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def stream(self, _: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self.asked.append(json.loads(json.dumps(body)))
        yield {"message": {"content": "seen"}}


def test_a_conversation_keeps_its_pictures() -> None:
    client = Answers()
    arguments = argparse.Namespace(verbose=False, keepalive=None)
    conversation = Conversation(cast("Client", client), "m", arguments, Sight(SEEING))
    conversation.ask("what is ./a.png")
    conversation.ask("and now?")
    images = [base64.b64encode(PICTURE + b"a.png").decode()]
    first, _, second = client.asked[1]["messages"]
    assert first == {"role": "user", "content": "what is", "images": images}
    assert second == {"role": "user", "content": "and now?"}


def test_a_model_that_cannot_see_is_given_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    sight = Sight(BLIND)
    assert sight.message("what is ./a.png") == {"role": "user", "content": "what is ./a.png"}
    assert "takes no images (a type like no other)" in capsys.readouterr().err
    sight.message("what is ./none.png")
    assert capsys.readouterr().err == ""


def test_a_path_is_no_command(here: pathlib.Path) -> None:
    assert not is_command(f"{here}/a.png what is it?")
    assert is_command("/set system look at ./a.png")
    assert is_command("/none.png")
    assert not is_command("say /bye")


def test_show_tells_of_the_eyes(capsys: pytest.CaptureFixture[str]) -> None:
    eyes = {
        "projector": "gemma3",
        "unused_projectors": 2,
        "artifacts": {"onnx-cpu": {"file_bytes": 1000}},
    }
    details = {"family": "f", "parameter_size": "1B", "quantization_level": "Q4_0"}
    answer = {
        "details": details,
        "model_info": {},
        "projector_info": {"clip.vision.image_size": 896},
        "hearth": {"vision": eyes},
    }
    print_model(answer)
    shown = capsys.readouterr().out
    for words in ("Projector", "gemma3", "896", "onnx-cpu", "1.0 KB", "2 more projectors"):
        assert words in shown
    print_model(answer | {"hearth": {"vision": {"projector": "x", "refusal": "not yet"}}})
    assert "not used      not yet" in capsys.readouterr().out
