"""The id and the name that are remembered."""

from __future__ import annotations

import pathlib

import msgspec
import pytest

from daemon.lan.identity import instance_name, load_identity, save_identity


def test_the_id_stays_the_same(tmp_path: pathlib.Path):
    home = tmp_path / "not" / "yet"
    first = load_identity(home, "Attic")
    save_identity(home, first)
    assert load_identity(home, "Attic") == first
    assert len(first.id) == 8 and int(first.id, 16) >= 0
    assert load_identity(tmp_path / "other", "Attic").id != first.id


def test_a_changed_name_is_remembered_until_the_owner_chooses_another(tmp_path: pathlib.Path):
    changed = msgspec.structs.replace(load_identity(tmp_path, "Attic"), name="Attic-2")
    save_identity(tmp_path, changed)
    assert load_identity(tmp_path, "Attic").name == "Attic-2"
    assert load_identity(tmp_path, "Cellar").name == "Cellar"
    assert load_identity(tmp_path, "Cellar").id == changed.id


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"id":"x","wanted":"Attic","name":"y"}', '{"id":"../../zz","wanted":"","name":""}'],
)
def test_an_unreadable_file_is_replaced(tmp_path: pathlib.Path, text: str):
    (tmp_path / "lan.json").write_text(text)
    fresh = load_identity(tmp_path, "Attic")
    assert fresh.name == "Attic" and len(fresh.id) == 8 and fresh.id.isalnum()


def test_a_home_that_cannot_be_written_is_only_a_warning(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_text("")
    save_identity(tmp_path / "file", load_identity(tmp_path, "Attic"))
    assert "could not be remembered" in caplog.text


@pytest.mark.parametrize(
    ("configured", "name"),
    [
        ("Attic", "Attic"),
        ("  a\x1b[2J\nb  ", "a[2Jb"),
        ("M1 v2.0", "M1 v2-0"),
        ("\u202e\x00", "Hearth"),
        ("ü" * 60, "ü" * 29),
    ],
)
def test_instance_names(configured: str, name: str):
    assert instance_name(configured) == name


def test_the_host_gives_the_name_when_nobody_else_does():
    assert instance_name("").startswith("Hearth on ")
